"""A network with two inputs, sequences of any length and their mask: trained, exported, run by name."""

from __future__ import annotations

import numpy as np

from deploycompress.config.reader import read
from deploycompress.engine.context import open_context
from deploycompress.engine.plan import plan
from deploycompress.engine.rehearsal import rehearse

MODELS = """
import torch
from torch import nn


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.linear = nn.Linear(8, 2)

    def forward(self, tokens, mask):
        weights = mask[:, :, None].float()
        return self.linear((self.embedding(tokens) * weights).sum(1) / weights.sum(1))
"""

WORDS = """
model:
  build: models.py:Words
  inputs:
    tokens: {shape: [batch, length], dtype: int64, max: 20}
    mask: {shape: [batch, length], dtype: int64}
data: {source: text, root: data, padding: longest, mask: true, min_count: 1, vocabulary: 20, batch_size: 16}
"""


def sentences(rng, i):
    words = [*rng.choice(["a", "b", "c"], size=rng.integers(1, 9)), ("bad", "good")[i % 2]]
    return f"{' '.join(words)},{i % 2}\n"


def test_it_learns_and_the_exported_file_takes_the_same_inputs(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for split, count in (("train", 192), ("test", 32)):
        content = "text,label\n" + "".join(sentences(rng, i) for i in range(count))
        (tmp_path / "data" / f"{split}.csv").write_text(content)
    (tmp_path / "models.py").write_text(MODELS)
    (tmp_path / "pipeline.yaml").write_text(
        f"name: several\n{WORDS}stages:\n  - train: {{epochs: 6, lr: 5e-2}}\n  - export\n"
    )
    config = read(tmp_path / "pipeline.yaml")
    said = []
    job = {"store": str(tmp_path / "store"), "search_path": [str(tmp_path)]}
    context = open_context(config, job, rehearsal=False, emit=said.append, stopping=lambda: False)
    rehearse(plan(config), tmp_path / "run", context)
    accuracies = [event.figures["val_accuracy"] for event in said if "val_accuracy" in event.figures]
    assert max(accuracies) > 0.9

    import onnxruntime

    session = onnxruntime.InferenceSession(next((tmp_path / "run").rglob("model.onnx")))
    assert [node.name for node in session.get_inputs()] == list(config.model.inputs)
    batches = list(context.data.loader("test"))
    right = 0
    for batch in batches:
        (logits,) = session.run(None, {name: tensor.numpy() for name, tensor in batch.inputs.items()})
        right += int((logits.argmax(1) == batch.targets.numpy()).sum())
    assert right >= 28
