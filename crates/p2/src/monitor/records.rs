//! The numbers of a run, to both its records and its curves.

use serde_json::{Map, Value, json};

use super::metrics::Metrics;
use super::tensorboard::{EventWriter, Scalar};
use crate::run_dir::RunDir;
use crate::train::Clock;

/// `metrics.jsonl` and TensorBoard's events.
#[derive(Debug)]
pub(crate) struct Records {
    metrics: Metrics,
    events: EventWriter,
}

impl Records {
    /// Those of a run that stands at `images_seen`, where its newest checkpoint is, if there is one.
    pub(crate) fn open(
        run_dir: &RunDir,
        images_seen: u64,
        saved_at: Option<u64>,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            metrics: Metrics::open(&run_dir.metrics(), images_seen)?,
            events: EventWriter::create(&run_dir.tensorboard(), saved_at)?,
        })
    }

    /// Writes numbers of the moment.
    pub(crate) fn write(
        &mut self,
        clock: Clock,
        numbers: Map<String, Value>,
    ) -> anyhow::Result<()> {
        let scalars: Vec<Scalar> = numbers
            .iter()
            .filter_map(|(tag, value)| {
                Some(Scalar {
                    tag: tag.clone(),
                    value: value.as_f64()? as f32,
                })
            })
            .collect();
        let mut record = Map::new();
        record.insert("images_seen".to_owned(), json!(clock.images_seen));
        record.insert("step".to_owned(), json!(clock.step));
        record.extend(numbers);
        if self.metrics.append(&record)? {
            self.events.append(clock.images_seen, &scalars)?;
        }
        Ok(())
    }

    /// Waits until the records are on the disk.
    pub(crate) fn sync(&mut self) -> anyhow::Result<()> {
        self.metrics.sync()
    }
}
