"""`esa arch`: a description for people on stdout, a table for programs, and words for what cannot be described."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from esa.artifact import read_table
from esa.artifact.hub import Commit
from esa.cli.description import percent, size
from tests.arch.models import change_tensors, llama_gguf, qwen_moe_gguf, save
from tests.cli.conftest import Invoke

SPECS = Path(__file__).parents[2] / "specs"
Shell = Callable[[str], "subprocess.CompletedProcess[bytes]"]

DESCRIPTION = """\
LlamaForCausalLM (llama): model
  weights      8,944
  embeddings   1,536 (17.17 %), and 1,536 in a head of its own
  blocks       3
  hidden size  16
  heads        4 of 4 channels; 2 for keys and values
  MLP size     24
  activation   silu
  vocabulary   96 tokens
  context      64 tokens

Components, all float32
component  tensors  weights      %    bytes
embed            1    1,536  17.17  6.14 kB
attn.q           3      768   8.59  3.07 kB
attn.k           3      384   4.29  1.54 kB
attn.v           3      384   4.29  1.54 kB
attn.o           3      768   8.59  3.07 kB
mlp.gate         3    1,152  12.88  4.61 kB
mlp.up           3    1,152  12.88  4.61 kB
mlp.down         3    1,152  12.88  4.61 kB
norm             7      112   1.25    448 B
lm_head          1    1,536  17.17  6.14 kB

Blocks, each (all of one make)
blocks  tensors  weights    bytes  all together
0-2           9    1,952  7.81 kB         5,856

In the files
dtype    tensors  weights     bytes  bits each
float32       30    8,944  35.78 kB      32.00

The whole, held as
format       bytes
float32   35.78 kB
bfloat16  17.89 kB
int8      13.47 kB
nf4        9.61 kB
int8: a byte per weight and a float32 scale per row; nf4: half a byte and a float32 scale per 64
weights; both of the blocks' matrices, the rest as bfloat16.

Scored by default
8,832 of 8,944 weights: tensors of two dimensions or more
left out, of one dimension: norm 112
"""


def test_a_model_is_described(folder: Path, esa: Invoke) -> None:
    """The description stands on stdout, word for word, nothing on stderr, and nothing is written."""
    before = sorted(folder.rglob("*"))
    done = esa("arch", "model")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout == DESCRIPTION
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("word", ["-q", "-v"])
def test_the_description_is_data(word: str, folder: Path, esa: Invoke) -> None:
    """Quiet or verbose, the description is the same: it is what was asked for."""
    assert esa("arch", "model", word).stdout == DESCRIPTION


SAID = {
    "llama_tied": ["Tied\nlm_head.weight = model.embed_tokens.weight, counted once", "embeddings   1,536 (20.73 %), tied to the head"],
    "gpt2": ["attn.qkv: query, key, value in each of 3 tensors of 16 x 48", "heads        4 of 4 channels\n"],
    "phi3": ["mlp.gate_up: gate, up in each of 3 tensors of 48 x 16"],
    "mixtral": [
        "active       12,592 per token (64.56 %)", "experts      4 in a block; a token uses 2",
        "expert.gate_up: gate, up of 4 experts in each of 3 tensors of 4 x 48 x 16", "bfloat16       60   19,504  39.01 kB      16.00",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", SAID)
def test_tied_fused_and_sparse_parts_are_said(name: str, tmp_path: Path, esa: Invoke) -> None:
    """Tied tensors, fused projections and experts, and what a token uses stand in the description."""
    save(name, tmp_path)
    done = esa("arch", tmp_path)
    assert done.exit_code == 0, done.output
    for text in SAID[name]:
        assert text in done.stdout


def test_a_gguf_file_is_described(tmp_path: Path, esa: Invoke) -> None:
    """Of a GGUF file the description has a row per type, their sum, and what is no parameter."""
    llama_gguf(tmp_path / "a.gguf")
    done = esa("arch", tmp_path / "a.gguf")
    assert done.exit_code == 0, done.output
    for text in (
        "mlp.down         2   12,288  17.57  9.98 kB  q4_0, q8_0", "0-1           9   30,848  17.79 kB to 20.86 kB        61,696",
        "q4_0           13   55,296  31.10 kB       4.50", "together       22   69,960  51.49 kB       5.89",
        "rope_freqs.weight: 32 B that match no parameter",
    ):  # fmt: skip
        assert text in done.stdout


def test_what_is_not_known_is_said(tmp_path: Path, esa: Invoke) -> None:
    """Bytes that are not known are dashes in the description and a warning in it; beside a table the warning is on stderr."""
    qwen_moe_gguf(tmp_path / "a.gguf", expert_size=32)
    done = esa("arch", tmp_path / "a.gguf")
    assert (done.exit_code, done.stderr) == (0, "")
    assert "warning      parameters that the files hold in no form that adds up: 4, such as" in done.stdout
    assert "expert.down           2  393,216  32.41  196,608        -  -" in done.stdout
    assert "blk.1.ffn_gate_exps.weight and 2 more: 44.03 kB that match no parameter" in " ".join(done.stdout.split())
    assert "esa: warning: parameters that the files hold" in esa("arch", tmp_path / "a.gguf", "-o", "-").stderr
    assert esa("arch", tmp_path / "a.gguf", "-o", "-", "-q").stderr == ""


def test_roles_that_esa_does_not_know_are_listed(folder: Path, esa: Invoke) -> None:
    """Parameters of the component other are listed by name, once for all blocks."""
    keys = {"model_type": "gpt_oss", "vocab_size": 96, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "num_local_experts": 4}  # fmt: skip
    shape = "\n".join(f"{key} = {value!r}" for key, value in keys.items())
    (folder / "o.toml").write_text(f'name = "o"\n[model]\nid = "owner/model"\n[model.shape]\n{shape}\n')
    done = esa("arch", "-s", "o.toml")
    assert done.exit_code == 0, done.output
    listed = done.stdout.split("Of a role that esa does not know (other)\n")[1].splitlines()
    assert listed == ["model.layers.*.self_attn.sinks"]


def test_mixtral_of_its_spec(esa: Invoke) -> None:
    """From a spec's shape alone, without the network, Mixtral has its published size; notes say what was assumed."""
    done = esa("arch", "-s", SPECS / "mixtral_8x7b.toml")
    assert done.exit_code == 0, done.output
    for text in (
        "weights      46,702,792,704", "active       12,879,925,248 per token (27.58 %)", "bfloat16   93.41 GB",
        "note         from model.shape alone: keys that it leaves out have MixtralConfig's defaults",
        "note         no weights at hand: dtype and bytes are those of bfloat16 (model.dtype;",
    ):  # fmt: skip
        assert text in done.stdout
    assert "In the files" not in done.stdout


@pytest.mark.parametrize("columns", ["80", "100"])
def test_a_large_model_fits_the_window(columns: str, monkeypatch: pytest.MonkeyPatch, esa: Invoke) -> None:
    """No line is wider than the window, and no number is cut, at 80 and at 100 columns."""
    monkeypatch.setattr("esa.cli.console._PAGE_WIDTH", int(columns))
    done = esa("arch", "-s", SPECS / "mixtral_8x7b.toml")
    assert max(len(line) for line in done.stdout.splitlines()) <= int(columns)
    assert "\N{HORIZONTAL ELLIPSIS}" not in done.stdout
    assert "expert.gate_up       32  30,064,771,072  64.37  7,516,192,768   60.13 GB" in done.stdout


def test_model_wins_over_the_spec_s(folder: Path, esa: Invoke) -> None:
    """MODEL beside --spec stands for model.id, and the spec's shape, which is another model's, is left out."""
    done = esa("arch", "model", "-s", SPECS / "llama_3_1_8b.toml")
    assert done.stdout == DESCRIPTION
    assert done.stderr.strip() == "model.shape of the spec is another model's: left out"
    assert esa("arch", "-s", "s.toml").stdout == DESCRIPTION


def test_the_table_in_every_format(folder: Path, esa: Invoke) -> None:
    """CSV and Parquet, file and stdout, hold the same table; nothing else is written or said."""
    for words in (("-o", "a.csv"), ("-o", "a.parquet")):
        done = esa("arch", "model", *words)
        assert (done.exit_code, done.output) == (0, "")
    frame = read_table("a.parquet", "arch/1").frame
    assert read_table("a.csv", "arch/1").frame.equals(frame)
    assert frame["numel"].sum() == 8944
    text = (folder / "a.csv").read_bytes()
    for words in (("-o", "-"), ("-f", "csv"), ("-o", "-", "-f", "csv")):
        assert esa("arch", "model", *words).stdout_bytes == text
    assert esa("arch", "model", "-f", "parquet").stdout_bytes == (folder / "a.parquet").read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == ["a.csv", "a.parquet", "model", "s.toml"]


def test_a_closed_pipe_ends_quietly(shell: Shell) -> None:
    """A reader that has gone ends table and description without a word, and with exit code 0."""
    done = shell("esa arch model -o - | true; echo ${PIPESTATUS[0]}; esa arch model | true; echo ${PIPESTATUS[0]}")
    assert (done.stdout.split(), done.stderr) == ([b"0", b"0"], b"")


def test_a_name_from_a_file_gives_the_terminal_no_orders(folder: Path, esa: Invoke) -> None:
    """A control sequence in the name of a file's tensor is shown as its characters."""
    change_tensors(folder / "model", lambda tensors: tensors.update({"a\x1b[31m[bold]b": torch.zeros(2)}))
    done = esa("arch", "model")
    assert r"a\x1b[31m[bold]b: 8 B that match no parameter" in done.stdout
    assert "\x1b" not in done.stdout


def test_dry_run_reads_nothing(folder: Path, esa: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """--dry-run prints the resolved spec as TOML with what would be read and written, and reads no model."""
    monkeypatch.setattr("esa.arch.describe", lambda *_: pytest.fail("the model was read"))
    done = esa("arch", "model", "-o", "a.csv", "-n")
    assert done.exit_code == 0, done.output
    assert done.stdout.endswith("# reads the configuration of model and the headers of its files; writes a.csv\n")
    (folder / "again.toml").write_text(done.stdout)
    assert esa("check", "again.toml", "-q").exit_code == 0


REFUSED = {
    "nothing": ((), "MODEL: no model is given\n  hint: esa arch smollm2-135m, or esa arch --spec specs/mixtral_8x7b.toml"),
    "a spec as model": (("s.toml",), "MODEL: 's.toml' is a spec, not a model\n  hint: esa arch --spec s.toml"),
    "no folder": (("./nowhere",), "model.id: './nowhere': no such folder"),
    "no file": (("nowhere.gguf",), "model.id: 'nowhere.gguf': no such file"),
    "a folder as target": (("model", "-o", "there/"), "--out: 'there/': a table is written; allowed: a .csv or .parquet file, or -"),
    "another suffix": (("model", "-o", "a.txt"), "--out: 'a.txt': a table is written; allowed: a .csv or .parquet file, or -"),
    "another format": (("model", "-f", "xls"), "--format: 'xls' is not a format; allowed: csv, parquet"),
    "an unknown key": (("model", "--set", "model.idd=1"), "--set model.idd=1: model.idd: unknown key (did you mean 'id'?)"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bad_content_is_one_clear_error(case: str, folder: Path, esa: Invoke) -> None:
    """Bad content ends with exit code 3 and one error that names place and value; nothing is on stdout."""
    words, text = REFUSED[case]
    done = esa("arch", *words)
    assert (done.exit_code, done.stdout) == (3, "")
    assert done.stderr.startswith(f"esa: error: {text}")


def test_a_hub_id_offline_is_said(esa: Invoke) -> None:
    """Of a hub id no more than the configuration is asked for; where nobody knows it, exit code 3 and what to do."""
    done = esa("arch", "owner/model")
    assert (done.exit_code, done.stdout) == (3, "")
    assert "asking the hub for the configuration of owner/model" in done.stderr
    assert "esa: error: model.id: 'owner/model' is no local folder" in done.stderr
    assert "hint: check the network" in done.stderr


def test_a_hub_s_configuration_is_enough(folder: Path, esa: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a hub id's configuration the model is described in the dtype that it names; no weight is asked for."""
    config = transformers.AutoConfig.from_pretrained(folder / "model")
    config._commit_hash = "0123abcd"

    def fetched(location: str, revision: str, **_: object) -> object:
        assert (location, revision) == ("owner/model", "0123abcd")
        return config

    monkeypatch.setattr("esa.model.footprint.pinned", lambda *_: Commit("0123abcd", "main"))
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", fetched)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("weights"))
    done = esa("arch", "owner/model", "-q")
    assert done.exit_code == 0, done.output
    assert (
        "note         no weights at hand: dtype and bytes are those of float32 (the configuration's dtype)"
        in done.stdout
    )
    assert esa("arch", "owner/model", "-o", "a.parquet", "-q").exit_code == 0
    assert '"revision":"0123abcd"' in read_table("a.parquet", "arch/1").meta["inputs"]


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(None, "-"), (0, "0 B"), (999, "999 B"), (1500, "1.50 kB"), (16_060_522_496, "16.06 GB")]
)
def test_sizes_are_readable(num_bytes: int | None, text: str) -> None:
    """Bytes are written in the largest decimal unit that leaves a whole part."""
    assert size(num_bytes) == text


@pytest.mark.parametrize(
    ("share", "text"), [(0, "0.00"), (1e-6, "<0.01"), (0.5, "50.00"), (0.999999, ">99.99"), (1, "100.00")]
)
def test_only_all_is_a_hundred_percent(share: float, text: str) -> None:
    """A share that is not nothing is not shown as nothing, and one that is not all is not shown as all."""
    assert percent(share) == text


@pytest.mark.slow
def test_the_real_model_is_described_quickly(shell: Shell) -> None:
    """The built-in model is described in seconds: three times what the import of transformers takes, at most."""
    began = time.perf_counter()
    code = "from transformers import LlamaForCausalLM"
    subprocess.run([sys.executable, "-c", code], check=True)
    imported = time.perf_counter() - began
    done = shell("esa arch smollm2-135m")
    assert done.returncode == 0
    assert time.perf_counter() - began - imported < max(5, 3 * imported)
