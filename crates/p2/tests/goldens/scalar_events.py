"""Writes scalar_events.tfevents with TensorBoard's own writer (tensorboard 2.21.0, protobuf 7.36.2).

Run: python scalar_events.py; needs only the package tensorboard.
"""

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

events = [
    Event(wall_time=1700000000.25, file_version="brain.Event:2"),
    Event(wall_time=1700000000.5, step=12801, session_log=SessionLog(status=SessionLog.START)),
    Event(
        wall_time=1700000001.75,
        step=128000,
        summary=Summary(
            value=[
                Summary.Value(tag="loss/weighted", simple_value=0.125),
                Summary.Value(tag="loss/mse", simple_value=-3.5e-7),
            ]
        ),
    ),
]
with open("scalar_events.tfevents", "wb") as file:
    writer = RecordWriter(file)
    for event in events:
        writer.write(event.SerializeToString())
    writer.flush()
