"""The family of small Llamas: trained the same every time, held to its baselines, as folders that esa loads."""

import argparse
import hashlib
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest

from esa.model import load_model
from esa.spec.sections import Model
from scripts import train_family
from scripts.train_family import LENGTH, SIZES, Plan, baselines, cut, line_of, prepare, train_member

ROOT = Path(__file__).parents[1]
WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "saw",
    "another",
    "cat",
    "that",
    "had",
    "sat",
    "there",
    "before",
    "it",
    "went",
    "home",
    "again",
]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a text of a bit more than a megabyte, of a few words in a seeded order."""
    draws = np.random.default_rng(0).choice(WORDS, 260_000)
    lines = [" ".join(draws[start : start + 12]) for start in range(0, len(draws), 12)]
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def options(text: Path, out: Path, **changes: object) -> argparse.Namespace:
    """Return what the script would be called with."""
    return argparse.Namespace(**{"text": text, "out": out, "kind": "llama", "steps": 4, "vocabulary": 300, **changes})


def hashes(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def assert_held_out_nll(out: Path, member: str) -> None:
    """Hold training.json to the language's loss of the weights beside it, window by window."""
    import torch

    loaded = load_model(Model(id=str(out / member), device="cpu"))
    tokens = torch.from_numpy(np.load(out / "held_out.npy"))
    total, number = 0.0, 0
    for window in tokens[: len(tokens) // LENGTH * LENGTH].reshape(-1, LENGTH)[:, None]:
        with torch.no_grad():
            logits = loaded.model(window, use_cache=False).logits[0, :-1].log_softmax(-1)
        total -= float(logits.gather(1, window[0, 1:, None]).sum())
        number += LENGTH - 1
    assert loaded.facts["training"]["held_out_nll"] == pytest.approx(total / number, abs=1e-4)


@pytest.fixture(scope="module")
def family(text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan]:
    """Return a family of one member after four steps."""
    out = tmp_path_factory.mktemp("family")
    plan = prepare(options(text, out))
    train_member(SIZES["0.1m"], 0, plan, str(out))
    return out, plan


def test_the_same_again_bit_for_bit(family: tuple[Path, Plan], text: Path, tmp_path: Path) -> None:
    """Trained anew, every file of a member is the same; another seed gives other weights."""
    out, _ = family
    plan = prepare(options(text, tmp_path))
    for seed in (0, 1):
        train_member(SIZES["0.1m"], seed, plan, str(tmp_path))
    member = "llama-0.1m-seed0"
    assert hashes(tmp_path / member) == hashes(out / member)
    weights = "model.safetensors"
    assert hashes(tmp_path / member)[weights] != hashes(tmp_path / "llama-0.1m-seed1")[weights]


def test_a_member_is_an_ordinary_folder(family: tuple[Path, Plan]) -> None:
    """esa loads a member and its checkpoints; each says its step, its tokens and its losses."""
    out, plan = family
    folder = out / "llama-0.1m-seed0"
    assert plan.checkpoints() == [0, 1, 2]
    for name, step in (("checkpoint-000000", 0), ("checkpoint-000001", 1), ("checkpoint-000002", 2), (".", 4)):
        loaded = load_model(Model(id=str(folder / name), device="cpu"))
        training = loaded.facts["training"]
        assert (training["step"], training["num_tokens"], training["seed"]) == (step, step * 8 * LENGTH, 0)
        ids = loaded.tokenizer("the cat sat\n")["input_ids"]
        assert loaded.tokenizer.decode(ids) == "the cat sat\n"
    assert loaded.facts["shape"]["context_length"] == LENGTH


def test_what_is_written_is_what_the_model_does(family: tuple[Path, Plan]) -> None:
    """The held-out NLL of training.json is that of the weights beside it, over windows of 128 held-out tokens."""
    out, _ = family
    assert_held_out_nll(out, "llama-0.1m-seed0")


def test_the_baselines_are_their_formulas() -> None:
    """Unigram with one added, and interpolated Kneser-Ney, as a plain transcription counts them; both sum to one."""
    draws = np.random.default_rng(1)
    train, held_out = draws.integers(0, 12, 700) ** 2 // 13, draws.integers(0, 12, LENGTH * 3 + 5) ** 2 // 13
    size = 12
    pairs, singles = Counter(itertools.pairwise(train.tolist())), Counter(train.tolist())
    n1, n2 = (sum(number == times for number in pairs.values()) for times in (1, 2))
    d = n1 / (n1 + 2 * n2)

    def continued(w: int) -> float:
        return (sum(1 for _, second in pairs if second == w) + 1) / (len(pairs) + size)

    def p(w: int, v: int) -> float:
        seen = sum(number for (first, _), number in pairs.items() if first == v)
        if not seen:
            return continued(w)
        kinds = sum(1 for first, _ in pairs if first == v)
        return max(pairs[v, w] - d, 0) / seen + d * kinds / seen * continued(w)

    for v in range(size):
        assert sum(p(w, v) for w in range(size)) == pytest.approx(1)
    windows = held_out[: LENGTH * 3].reshape(3, LENGTH)
    bigram = [-math.log(p(w, v)) for row in windows.tolist() for v, w in itertools.pairwise(row)]
    unigram = [-math.log((singles[w] + 1) / (len(train) + size)) for row in windows.tolist() for w in row[1:]]
    assert baselines(train, held_out, size) == pytest.approx((np.mean(unigram), np.mean(bigram)))


def test_five_percent_are_held_out(text: Path) -> None:
    """The two parts are the text, cut where a line begins; the second is a twentieth."""
    whole = text.read_text(encoding="utf-8")
    train, held_out = cut(whole)
    assert train + held_out == whole
    assert train.endswith("\n")
    assert len(held_out) == pytest.approx(0.05 * len(whole), rel=0.01)


def test_who_does_not_beat_the_bigram_is_named(family: tuple[Path, Plan]) -> None:
    """A member whose held-out NLL is not below the bigram's is said to be in no law."""
    out, _ = family
    line = line_of(out / "llama-0.1m-seed0", 1.0)
    assert line["held_out_nll"] > line["bigram_nll"], "four steps do not teach a bigram"
    assert not line["beats_bigram"]
    assert "NOT below the bigram: no law counts it" in train_family.sentence(line)
    assert line["num_parameters"] == load_model(Model(id=str(out / "llama-0.1m-seed0"))).facts["num_parameters"]


@pytest.mark.parametrize("changes", [{"steps": 5}, {"vocabulary": 301}, {"text": "other.txt"}])
def test_another_family_is_not_written_over(
    family: tuple[Path, Plan], text: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    """Where members of another text, vocabulary or number of steps lie, all of the folder stays as it was."""
    out, plan = family
    before = hashes(out)
    if "text" in changes:
        changes = {"text": tmp_path / "other.txt"}
        (tmp_path / "other.txt").write_text(text.read_text(encoding="utf-8") + "more\n", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"was trained on .*, not "):
        prepare(options(**{"text": text, "out": out, **changes}))  # type: ignore[arg-type]
    assert hashes(out) == before
    (tmp_path / "way" / "llama-0.1m-seed0").mkdir(parents=True)
    with pytest.raises(SystemExit, match=r"llama-0\.1m-seed0 is in the way: it holds no member"):
        prepare(options(text, tmp_path / "way"))
    assert prepare(options(text, out)) == plan
    assert hashes(out) == before


def test_a_text_of_one_line_is_cut_all_the_same() -> None:
    """Where no line begins in the last twentieth, the cut is between two characters: neither part is empty."""
    for whole in ("word " * 1000, "a\n" + "word " * 1000 + "\n"):
        train, held_out = cut(whole)
        assert train + held_out == whole
        assert len(held_out) == pytest.approx(0.05 * len(whole), rel=0.05)


def test_a_member_that_diverged_is_no_number(family: tuple[Path, Plan], tmp_path: Path) -> None:
    """A loss that is NaN is null in JSON, beats no bigram, and is said in words."""
    out, _ = family
    copytree(out / "llama-0.1m-seed0", tmp_path / "member")
    path = tmp_path / "member" / "training.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"held_out_nll": None}))
    line = line_of(tmp_path / "member", 1.0)
    assert not line["beats_bigram"]
    assert "held-out NLL diverged, NOT below the bigram" in train_family.sentence(line)


def test_a_short_text_is_refused(tmp_path: Path) -> None:
    """Less than a megabyte is refused with both numbers, and nothing is written."""
    (tmp_path / "short.txt").write_text("short\n" * 100)
    with pytest.raises(SystemExit, match=r"short\.txt: 600 bytes; at least 1,000,000 are needed"):
        prepare(options(tmp_path / "short.txt", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_sizes_go_from_a_tenth_of_a_million_to_six() -> None:
    """Six sizes, each about twice the one before, all with an even number of channels per head."""
    assert len(SIZES) == 6
    numbers = [1024 * s.width + s.layers * (4 * s.width**2 + 3 * s.width * s.inner) for s in SIZES.values()]
    assert numbers[0] == pytest.approx(1e5, rel=0.1)
    assert numbers[-1] == pytest.approx(6e6, rel=0.1)
    assert all(1.7 < high / low < 3 for low, high in itertools.pairwise(numbers))
    assert all(size.width % (2 * size.heads) == 0 for size in SIZES.values())


def test_a_mixture_has_experts(text: Path, tmp_path: Path) -> None:
    """A Mixtral is trained with its router's balance, and its held-out NLL is the language's alone."""
    plan = prepare(options(text, tmp_path, kind="mixtral", steps=1))
    line = train_member(SIZES["0.1m"], 0, plan, str(tmp_path))
    facts = load_model(Model(id=str(tmp_path / "mixtral-0.1m-seed0"), device="cpu")).facts
    assert (facts["shape"]["num_experts"], facts["shape"]["num_experts_per_tok"]) == (4, 2)
    assert facts["active_parameters"] < facts["num_parameters"] == line["num_parameters"]
    assert_held_out_nll(tmp_path, "mixtral-0.1m-seed0")


@pytest.mark.slow
def test_the_script_trains_and_goes_on(text: Path, tmp_path: Path) -> None:
    """It prints every member beside the baselines; asked again it keeps what is there and adds what is missing."""
    words = [
        sys.executable, "scripts/train_family.py", "--text", str(text), "-o", str(tmp_path), "--sizes", "0.1m", "--steps",
        "3", "--vocabulary", "300",
    ]  # fmt: skip
    done = subprocess.run([*words, "--seeds", "0"], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "| llama-0.1m-seed0 |" in done.stdout
    again = subprocess.run([*words, "--seeds", "0", "1"], capture_output=True, text=True, cwd=ROOT, check=True)
    rows = [line for line in again.stdout.splitlines() if line.startswith("| llama")]
    assert [row.endswith("| kept |") for row in rows] == [True, False]
    content = json.loads((tmp_path / "llama.json").read_text())
    assert [one["member"] for one in content["members"]] == ["llama-0.1m-seed0", "llama-0.1m-seed1"]
    assert not list(tmp_path.glob(".llama*"))


def test_interrupt_ends_every_process_and_leaves_nothing_half_written(text: Path, tmp_path: Path) -> None:
    """Ctrl-C, which reaches the workers, too, ends with 130 and a sentence: no hang, no traceback, no half member."""
    out = tmp_path / "family"
    command = [
        sys.executable,
        "scripts/train_family.py",
        "--text",
        str(text),
        "-o",
        str(out),
        "--sizes",
        "0.1m",
        "0.3m",
    ]
    call = subprocess.Popen(
        [*command, "--vocabulary", "300", "--jobs", "2"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not list(out.glob(".llama-*")) and time.monotonic() < deadline and call.poll() is None:
            time.sleep(0.1)
        os.killpg(call.pid, signal.SIGINT)
        said = call.communicate(timeout=60)[1]
    finally:
        if call.poll() is None:
            os.killpg(call.pid, signal.SIGKILL)
    assert call.returncode == 130
    assert said.splitlines()[-1] == (
        "train_family: interrupted; the same command keeps what is finished and trains the rest"
    )
    assert "Traceback" not in said
    assert not list(out.glob(".llama-*"))
