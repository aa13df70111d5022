"""Fills fuzz/corpus with the files that fuzzing begins with.

Usage: python fuzz/seeds.py   (needs Python 3.11, nothing else)
"""

import json
import shutil
import struct
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Longer ones make fuzzing slow, and say nothing that short ones do not.
MAX_BYTES = 1 << 14


def torch_files(corpus):
    """What PyTorch wrote for the tests, and the pickles in it."""
    files, pickles = corpus / "torch_file", corpus / "torch_pickle"
    for path in sorted((ROOT / "crates/p2/tests/torch").glob("*.pt")):
        if path.stat().st_size <= MAX_BYTES:
            shutil.copy(path, files / path.name)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
                (pickles / f"{path.stem}.pkl").write_bytes(archive.read(name))


def model_files(corpus):
    """Model files of the presets, with one tensor of two numbers: more would be too long."""
    for path in sorted((ROOT / "configs").glob("*.toml")):
        config = json.dumps(tomllib.loads(path.read_text()))
        tensor = {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]}
        header = json.dumps({"__metadata__": {"p2": config}, "out.0.bias": tensor}).encode()
        content = struct.pack("<Q", len(header)) + header + struct.pack("<2f", 1.0, -2.0)
        (corpus / "model_file" / f"{path.stem}.safetensors").write_bytes(content)


def main():
    corpus = ROOT / "fuzz/corpus"
    for target in ("torch_file", "torch_pickle", "model_file"):
        (corpus / target).mkdir(parents=True, exist_ok=True)
    torch_files(corpus)
    model_files(corpus)


main()
