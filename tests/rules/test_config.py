"""Every mistake in `config.json` is an error that names file, key and what was found."""

import copy
import json
import math
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jasper_mmap.errors import ConfigError, ContentError, JasperError, MissingFileError, together
from jasper_mmap.rules.config import default_curriculum
from jasper_mmap.store.config_file import parse_config, read_config

GOOD: dict[str, Any] = {
    "embedding_dim": 384,
    "n_neg": 12,
    "steering_probabilities": {"zero": 0.1, "centroid": 0.2, "keyword": 0.4, "residual": 0.3},
    "curriculum": {"zero_prob_start": 0.5, "zero_prob_end": 0.1, "epochs_total": 10},
    "builder": "x",
}
KEYS = [
    ("embedding_dim",),
    ("n_neg",),
    ("steering_probabilities",),
    *(("steering_probabilities", name) for name in GOOD["steering_probabilities"]),
    *(("curriculum", name) for name in GOOD["curriculum"]),
]


def changed(path: tuple[str, ...], change: Callable[[dict[str, Any], str], Any]) -> str:
    """Return the text of a configuration with `change(object, key)` done at `path`."""
    value = copy.deepcopy(GOOD)
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    change(holder, path[-1])
    return json.dumps(value)


def misspell(holder: dict[str, Any], key: str) -> None:
    """Double the last letter of the key."""
    holder[key + key[-1]] = holder.pop(key)


def refused(text: str, *words: str) -> None:
    """Require a `ConfigError`, also a `KeyError`, whose message holds the file and all `words`."""
    with pytest.raises(ConfigError) as caught:
        parse_config(text, Path("folder/config.json"))
    assert isinstance(caught.value, KeyError)
    for word in ("folder/config.json", *words):
        assert word in str(caught.value)


def test_good_config_is_read_whole() -> None:
    """Checked values come out as they stand, unknown keys are kept."""
    config = parse_config(json.dumps(GOOD), Path("config.json"))
    assert (config.embedding_dim, config.n_neg) == (384, 12)
    assert config.steering_probabilities == GOOD["steering_probabilities"]
    assert config.curriculum is not None
    assert vars(config.curriculum) == GOOD["curriculum"]
    assert config.raw == GOOD


def with_curriculum(value: object) -> str:
    """Return the text of a configuration with this curriculum."""
    return json.dumps({**GOOD, "curriculum": value})


def test_curriculum_may_be_left_out() -> None:
    """Without one there is none, and that is no error; null and {} are none."""
    text = changed(("curriculum",), lambda holder, key: holder.pop(key))
    for none in (text, with_curriculum(None), with_curriculum({})):
        config = parse_config(none, Path("config.json"))
        assert config.curriculum is None
        assert default_curriculum(config) is None


BUILDER = {"mode": "linear", "start_distance": 0.3, "end_distance": 0.7, "warmup_epochs": 10}


@pytest.mark.parametrize("value", [BUILDER, {"mode": "linear"}, {"total": 3, "epoch": 1}])
def test_curriculum_with_none_of_its_keys_is_the_earlier_implementation_s(value: object) -> None:
    """Its defaults apply, with a sentence that has them; what stands there is kept."""
    config = parse_config(with_curriculum(value), Path("config.json"))
    assert config.curriculum is not None
    assert vars(config.curriculum) == {
        "zero_prob_start": 0.5,
        "zero_prob_end": 0.1,
        "epochs_total": 100,
    }
    assert config.raw["curriculum"] == value
    told = default_curriculum(config)
    assert told is not None
    assert "zero_prob_start 0.5, zero_prob_end 0.1, epochs_total 100" in told
    good = parse_config(json.dumps(GOOD), Path("config.json"))
    assert default_curriculum(good) is None


@pytest.mark.parametrize(
    ("value", "missing", "default"),
    [
        ({"zero_prob_start": 0.9, "zero_prob_end": 0.1, "epoch_count": 9}, "epochs_total", "100"),
        ({"zero_prob_start": 0.9, "zero_prob_end": 0.1, "total_epochs": 9}, "epochs_total", "100"),
        ({**BUILDER, "epochs_total": 7, "zero_prob_end": 0}, "zero_prob_start", "0.5"),
        ({**BUILDER, "epochs_total": 7, "zero_prob_start": 0}, "zero_prob_end", "0.1"),
    ],
)
def test_curriculum_with_some_of_its_keys_wants_the_others(
    value: object, missing: str, default: str
) -> None:
    """Each is named with what the earlier implementation took for it, to be written down."""
    refused(with_curriculum(value), missing, f"used {default})")


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("zero_prob_strat", "zero_prob_start"),
        ("Zero_Prob_End", "zero_prob_end"),
        ("total_epochs", "epochs_total"),
        ("epoch_total", "epochs_total"),
    ],
)
def test_misspelt_key_of_the_curriculum_is_not_taken_for_an_absent_one(
    key: str, meant: str
) -> None:
    """Alone, among the builder's keys, or beside known ones: the defaults must not apply."""
    for others in ({}, BUILDER, {k: v for k, v in GOOD["curriculum"].items() if k != meant}):
        refused(with_curriculum({**others, key: 0.5}), key, f"'{meant}'", "misspelt", "used ")


@pytest.mark.parametrize(("value", "counts_as"), [(0, 1), (0.0, 1), (1, 1), (100.0, 100)])
def test_epochs_total_is_read_as_the_earlier_implementation_did(
    value: float, counts_as: int
) -> None:
    """No epoch counts as one, a whole float as its integer."""
    text = with_curriculum({**GOOD["curriculum"], "epochs_total": value})
    config = parse_config(text, Path("config.json"))
    assert config.curriculum is not None
    assert config.curriculum.epochs_total == counts_as
    assert type(config.curriculum.epochs_total) is int


def test_all_problems_are_told_at_once() -> None:
    """A line each: the first one's like any error, the others indented."""
    text = json.dumps(
        {
            "embeding_dim": 3,
            "n_neg": 0,
            "steering_probabilities": {"zero": 2, "centroid": 0.2, "keyword": 0.4},
            "curriculum": {"zero_prob_start": 0.5, "epochs_total": 2.5},
        }
    )
    with pytest.raises(ConfigError) as caught:
        parse_config(text, Path("c.json"))
    lines = str(caught.value).split("\n")
    assert all(line.startswith("c.json: ") for line in [lines[0], *(x[2:] for x in lines[1:])])
    assert all(line.startswith("  ") for line in lines[1:])
    for line, words in zip(
        lines,
        (
            "'embeding_dim' looks misspelt",
            "'n_neg' must be",
            "'residual' in 'steering_probabilities' is missing",
            "'zero' in 'steering_probabilities' must be between 0 and 1, found 2",
            "'zero_prob_end' in 'curriculum' is missing",
            "'epochs_total' in 'curriculum' must be",
        ),
        strict=True,
    ):
        assert words in line


@pytest.mark.parametrize("text", ['{"n_neg": 1%s}', '{"n_neg": 1, "x": -1%s}'])
def test_number_of_too_many_digits_is_an_error_of_ours(text: str) -> None:
    """Python itself reads 4,300 digits at most."""
    refused(text % ("0" * 5000))


@pytest.mark.parametrize("value", [10**400, -(10**400)])
def test_probability_beyond_every_float_is_refused(value: int) -> None:
    """JSON has no bounds."""
    text = changed(("steering_probabilities", "zero"), lambda h, k: h.__setitem__(k, value))
    refused(text, "zero", "between 0 and 1")


@pytest.mark.parametrize(("n", "lines"), [(1, 1), (2, 2), (21, 21), (22, 22), (500, 22)])
def test_errors_are_put_together(n: int, lines: int) -> None:
    """Of the first one's type; 20 further lines, then a count; again and again; no line twice."""
    problems = [MissingFileError("0"), *(ContentError(str(i)) for i in range(1, n))]
    error = together(problems)
    assert type(error) is MissingFileError
    told = str(error).split("\n")
    assert len(told) == lines
    assert told[0] == "0"
    assert told[1:21] == [f"  {i}" for i in range(1, min(n, 21))]
    if n > 21:
        assert told[21] == f"  and {n - 21} more problems"
    assert str(together([*problems[:20], together(problems[:20])])) == str(together(problems[:20]))


@pytest.mark.parametrize("path", KEYS, ids=".".join)
def test_missing_key_is_named(path: tuple[str, ...]) -> None:
    """Each key that must be there is asked for by its name."""
    refused(changed(path, lambda holder, key: holder.pop(key)), f"'{path[-1]}'", "missing")


@pytest.mark.parametrize("path", [*KEYS, ("curriculum",)], ids=".".join)
def test_misspelt_key_is_told_with_the_right_spelling(path: tuple[str, ...]) -> None:
    """A near miss of a known key that is absent is an error, an optional key's too."""
    refused(changed(path, misspell), path[-1], "misspelt")


def test_key_that_resembles_one_that_is_there_is_kept() -> None:
    """Only what stands for an absent key is taken for a misspelling."""
    text = json.dumps({**GOOD, "n_negs": 5, "embeddings_dim": 1})
    assert parse_config(text, Path("config.json")).raw["n_negs"] == 5


@pytest.mark.parametrize("name", ["embedding_dim", "curriculum", "builder", "zero_prob_end"])
def test_duplicate_key_is_refused(name: str) -> None:
    """JSON lets the last one win; here it is an error, at any depth and for unknown keys too."""
    text = json.dumps(GOOD)
    at = text.index(f'"{name}"')
    refused(f'{text[:at]}"{name}": 1, {text[at:]}', f"duplicate key '{name}'")


@pytest.mark.parametrize("key", ["embedding_dim", "n_neg"])
@pytest.mark.parametrize("value", [0, -3, 1.5, 12.0, "12", True, None, [12]])
def test_size_must_be_a_positive_whole_number(key: str, value: object) -> None:
    """What was found is repeated."""
    refused(json.dumps({**GOOD, key: value}), f"'{key}'", repr(value))


@pytest.mark.parametrize("path", KEYS[3:-1], ids=".".join)
@pytest.mark.parametrize("value", [-0.1, 1.1, "0.1", True, None, float("nan"), float("inf")])
def test_probability_must_lie_between_0_and_1(path: tuple[str, ...], value: object) -> None:
    """Each of them, NaN and infinity (which Python's JSON lets in) included."""
    refused(
        changed(path, lambda holder, key: holder.__setitem__(key, value)), path[-1], repr(value)
    )


@pytest.mark.parametrize("value", [-1, 2.5, "10", True, None, math.nan, math.inf])
def test_epochs_total_must_be_a_whole_number(value: object) -> None:
    """What was found is repeated."""
    rule = {**GOOD["curriculum"], "epochs_total": value}
    refused(json.dumps({**GOOD, "curriculum": rule}), "epochs_total", repr(value))


def test_probabilities_must_sum_to_one() -> None:
    """The sum that was found is told; rounding errors pass."""
    base = GOOD["steering_probabilities"]
    refused(json.dumps({**GOOD, "steering_probabilities": {**base, "zero": 0.2}}), "sum", "1.1")
    refused(json.dumps({**GOOD, "steering_probabilities": {**base, "zero": 0.0999}}), "sum")
    thirds = {"zero": 0.0, "centroid": 0.33333333, "keyword": 0.33333333, "residual": 0.33333333}
    text = json.dumps({**GOOD, "steering_probabilities": thirds})
    parse_config(text, Path("config.json"))


@pytest.mark.parametrize("key", ["steering_probabilities", "curriculum"])
@pytest.mark.parametrize("value", [None, 0, False, "x", [], [0.1, 0.2]])
def test_object_is_asked_for_where_something_else_stands(key: str, value: object) -> None:
    """Only null leaves the curriculum out."""
    if (key, value) == ("curriculum", None):
        return
    refused(json.dumps({**GOOD, key: value}), f"'{key}'", "object", repr(value))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 100_000, '{"a": }'])
def test_text_that_is_no_json_object_is_refused(text: str) -> None:
    """Whatever stands there, it is our error."""
    refused(text)


def test_missing_file_is_told(tmp_path: Path) -> None:
    """The words that users search for stay."""
    with pytest.raises(MissingFileError, match="Config file not found"):
        read_config(tmp_path)


def test_unreadable_file_is_told(tmp_path: Path) -> None:
    """Bytes that are no text, or a folder of that name, are errors of ours."""
    path = tmp_path / "config.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        read_config(tmp_path)
    path.unlink()
    path.mkdir()
    assert stat.S_ISDIR(path.stat().st_mode)
    with pytest.raises(JasperError):
        read_config(tmp_path)
