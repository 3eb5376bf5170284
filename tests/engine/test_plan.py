"""The plan: which steps there are, and where each reads from."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from deploycompress.config.reader import read
from deploycompress.config.schema import TargetConfig, TaskConfig
from deploycompress.engine.plan import plan


def steps_of(tiny: Path, stages: str) -> dict[str, tuple[str, dict]]:
    text = tiny.read_text()
    head, tail = text.index("stages:"), text.index("gates:")
    tiny.write_text(text[:head] + "stages:\n" + stages + text[tail:])
    return {s.id: (s.directory, dict(s.sources)) for s in plan(read(tiny))}


def test_baseline_is_exported_before_the_first_compressing_step(tiny):
    steps = steps_of(
        tiny,
        """
  - train: {epochs: 1}
  - prune: {target: {macs: 50%}}
  - distill: {epochs: 1}
  - export
  - quantize
  - benchmark
""",
    )
    assert [directory for directory, _ in steps.values()] == [
        "00-model",
        "01-train",
        "02-baseline",
        "03-prune",
        "04-distill",
        "05-export",
        "06-quantize",
        "07-benchmark",
    ]
    assert steps["baseline"][1] == {"source": ("train",)}
    assert steps["distill"][1] == {"source": ("prune",), "teacher": ("train",)}
    assert steps["benchmark"][1]["baseline"] == ("baseline",)
    assert "baseline" not in steps["benchmark"][1]["source"] and "quantize" in steps["benchmark"][1]["source"]


def test_the_export_itself_is_the_baseline_where_nothing_changes_the_checkpoint(tiny):
    steps = steps_of(tiny, "  - train: {epochs: 1}\n  - export\n  - quantize\n  - benchmark\n")
    assert "baseline" not in steps
    assert steps["benchmark"][1]["baseline"] == ("export",)
    assert steps["benchmark"][1]["source"] == ("quantize",)


def test_no_baseline_is_made_where_nothing_asks_for_it(tiny):
    tiny.write_text(tiny.read_text().replace("gates:\n  artifact_size: {max: 1 MB}\n", "gates: {}\n"))
    assert "baseline" not in steps_of(tiny, "  - train: {epochs: 1}\n  - prune: {target: {macs: 50%}}\n")


def test_every_step_has_its_timeout_and_the_baseline_that_of_the_export(tiny):
    text = (
        tiny.read_text()
        .replace("- export", "- export: {timeout: 3 min}")
        .replace("- benchmark", "- benchmark: {timeout: 1 h}")
    )
    text = text.replace("  build: model", "  timeout: 5 min\n  build: model")
    tiny.write_text(text.replace("lr: 0.1}", "lr: 0.1, timeout: 90 s}"))
    limits = {step.id: step.timeout_s for step in plan(read(tiny))}
    assert (
        limits["train"] == 90
        and limits["export"] == limits["baseline"] == 180
        and limits["benchmark"] == 3600
    )
    assert limits["model"] == 300 and limits["prune"] is None


def test_from_reads_another_step(tiny):
    steps = steps_of(
        tiny,
        """
  - train: {epochs: 1}
  - prune: {target: {macs: 50%}}
  - export
  - quantize
  - build_engine: {required: false, from: export}
  - benchmark
""",
    )
    assert steps["build_engine"][1]["source"] == ("export",)


def test_repeat_is_a_chain_of_rounds(tiny):
    steps = steps_of(
        tiny,
        """
  - train: {epochs: 1}
  - repeat: 2
    stages:
      - prune: {target: {macs: 50%}}
      - distill: {epochs: 1}
  - export
  - benchmark
""",
    )
    assert steps["distill@1"][1] == {"source": ("prune@1",), "teacher": ("train",)}
    assert steps["prune@2"][1] == {"source": ("distill@1",)}
    assert steps["distill@2"][1] == {"source": ("prune@2",), "teacher": ("train",)}
    assert steps["export"][1] == {"source": ("distill@2",)}


REPEATED = """
  - train: {epochs: 1}
  - repeat: 3
    stages:
      - prune: {target: {macs: 50%}}
      - distill: {epochs: 1, teacher: TEACHER}
  - export
  - benchmark
"""


def test_the_student_of_the_last_round_teaches_the_next(tiny):
    steps = steps_of(tiny, REPEATED.replace("TEACHER", "previous"))
    teachers = [steps[f"distill@{n}"][1]["teacher"] for n in (1, 2, 3)]
    assert teachers == [("train",), ("distill@1",), ("distill@2",)]


def test_mixed_is_the_original_and_the_student_of_the_last_round(tiny):
    steps = steps_of(tiny, REPEATED.replace("TEACHER", "mixed"))
    assert steps["distill@1"][1] == {"source": ("prune@1",), "teacher": ("train",)}
    assert steps["distill@3"][1] == {
        "source": ("prune@3",),
        "teacher.0": ("train",),
        "teacher.1": ("distill@2",),
    }


def test_a_student_of_another_build_is_compared_with_its_source(tiny):
    student = "{build: model.py:build, args: {width: 4}}"
    steps = steps_of(
        tiny,
        f"""
  - train: {{epochs: 1}}
  - distill: {{epochs: 1, student: {student}}}
  - distill: {{id: smaller, from: train, epochs: 1, student: {student}}}
  - export
  - benchmark
""",
    )
    assert list(steps)[1:4] == ["train", "baseline", "distill"]
    assert steps["baseline"][1] == {"source": ("train",)}
    assert steps["distill"][1] == {"source": ("train",), "teacher": ("train",)}
    assert steps["smaller"][1] == {"source": ("train",), "teacher": ("train",)}
    assert steps["benchmark"][1]["baseline"] == ("baseline",)


def test_what_leaves_a_result_as_it_is_is_not_in_its_key():
    from deploycompress.engine.keys import step_key
    from deploycompress.engine.plan import Step
    from deploycompress.stages.train import Train

    config = SimpleNamespace(task=TaskConfig(), target=TargetConfig(), gates={}, seed=0)

    def key(**options):
        stage = Train(Train.Config.model_validate(options))
        return step_key(Step("train", "train", stage, "01-train", {}), config, {}, {}, None)

    two = {"processes": 2, "nodes": 2, "rendezvous": "10.0.0.1:29400"}
    assert key() == key(checkpoint_every="7 steps", track=["tensorboard"], track_folder="there")
    assert key(launch=two) == key(launch=two | {"rendezvous": "10.0.0.2:29401"}) != key()
    assert key() != key(epochs=11) and key() != key(ema=0.9)


def test_a_runtime_of_networks_is_compared_with_the_network_before_compression(tiny):
    """And nothing is exported for it, unless another step wants that."""
    text = tiny.read_text()
    tiny.write_text(text.replace("target: {threads: 1}", "target: {runtime: pytorch}"))
    chain = "  - train: {epochs: 1}\n  - prune: {target: {macs: 50%}}\n"
    steps = steps_of(tiny, chain + "  - compile\n  - benchmark\n")
    assert "baseline" not in steps
    assert steps["compile"][1] == {"source": ("prune",), "baseline": ("train",), "network": ("prune",)}
    assert steps["benchmark"][1]["baseline"] == ("train",)
    assert steps["benchmark"][1]["source"] == ("prune", "compile")
    # An exported one is there for a step that reads no network.
    steps = steps_of(tiny, chain + "  - export\n  - quantize\n  - benchmark\n")
    assert steps["quantize"][1]["baseline"] == ("baseline",)
    assert steps["benchmark"][1]["baseline"] == ("train",)
    # An export before the first compressing step is nothing that this runtime runs.
    steps = steps_of(tiny, "  - train: {epochs: 1}\n  - export\n  - compile\n  - benchmark\n")
    assert steps["compile"][1] == {"source": ("export",), "baseline": ("train",), "network": ("train",)}
    assert steps["benchmark"][1]["baseline"] == steps["benchmark"][1]["original"] == ("train",)


def test_a_network_that_is_trained_again_is_no_result(tiny):
    text = tiny.read_text()
    tiny.write_text(text.replace("target: {threads: 1}", "target: {runtime: pytorch}"))
    rounds = (
        "  - repeat: 2\n    stages:\n      - prune: {target: {macs: 50%}}\n      - distill: {epochs: 1}\n"
    )
    steps = steps_of(tiny, "  - train: {epochs: 1}\n" + rounds + "  - benchmark\n")
    assert steps["benchmark"][1]["source"] == ("distill@2",)


def test_compile_knows_the_network_that_its_source_was_exported_from(tiny):
    steps = steps_of(
        tiny,
        """
  - train: {epochs: 1}
  - prune: {target: {macs: 50%}}
  - export
  - distill: {epochs: 1, from: prune}
  - compile: {from: export}
  - benchmark
""",
    )
    assert steps["compile"][1] == {"source": ("export",), "baseline": ("baseline",), "network": ("prune",)}
