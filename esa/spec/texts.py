"""The grammar of text sources: ``builtin:NAME``, ``file:PATH``, ``hf:DATASET[/CONFIG][@REVISION]:SPLIT[:FIELD]``."""

import re
from dataclasses import dataclass
from typing import Literal

HUB_FORM = "hf:DATASET[/CONFIG][@REVISION]:SPLIT[:FIELD]"
ALLOWED = f"builtin:NAME, file:PATH, {HUB_FORM}"
_NAME = re.compile(r"\w[\w.-]*")
_CONFIG = re.compile(r"[^\s/@]+")
_PATHS = (".", "/", "~")


@dataclass(frozen=True)
class TextSource:
    """One text source, taken apart.

    ``name``: the built-in text's name, the file's path, or the dataset: ``owner/name`` or ``name`` on the hub, a folder
    where ``local``. ``config``, ``revision``, ``split`` and ``field`` are those of a dataset.
    """

    kind: Literal["builtin", "file", "hf"]
    name: str
    config: str | None = None
    revision: str | None = None
    split: str = ""
    field: str = "text"
    local: bool = False


def parse_source(source: str) -> TextSource:
    """Return the parts of a text source. Raises ValueError with what is wrong and what is allowed.

    ``hf:``: SPLIT is all up to the next colon, FIELD the rest (``text`` by default); a slice such as ``train[:10]`` is
    not a split. What stands before SPLIT is read thus. REVISION (branch, tag or commit; main by default) follows the last
    ``@``. A DATASET that opens with ``.``, ``/`` or ``~`` is a local folder and has no REVISION; its last part is the
    CONFIG where there is no such folder, but a README.md beside it, which names configs. Any other is on the hub:
    ``name``, ``owner/name`` or ``owner/name/CONFIG``. Two parts are always owner and name, so a dataset without an owner
    takes no CONFIG.
    """
    kind, _, rest = source.partition(":")
    if not rest or kind not in ("builtin", "file", "hf"):
        raise ValueError(f"'{source}' is not a text source; allowed: {ALLOWED}")
    if kind == "builtin":
        return TextSource("builtin", rest)
    if kind == "file":
        return TextSource("file", rest)
    dataset, _, tail = rest.partition(":")
    split, colon, field = tail.partition(":")
    if not dataset or not split or (colon and not field):
        raise ValueError(f"'{source}' is not a text source; allowed: {HUB_FORM}")
    if not _NAME.fullmatch(split):
        shown = tail if "[" in split else split
        raise ValueError(f"'{source}': '{shown}' is not a split; allowed: a name such as train or validation, no slice")
    field = field or "text"
    if dataset.startswith(_PATHS):
        return TextSource("hf", dataset, split=split, field=field, local=True)
    place, at, revision = dataset.rpartition("@") if "@" in dataset else (dataset, "", "")
    parts = place.split("/")
    names, config = parts[:2], parts[2] if len(parts) == 3 else None
    known = all(_NAME.fullmatch(part) for part in names) and (config is None or _CONFIG.fullmatch(config))
    if len(parts) > 3 or not known or (at and not revision):
        raise ValueError(
            f"'{source}': '{dataset}' is not a dataset; allowed: NAME, OWNER/NAME or OWNER/NAME/CONFIG, each with"
            " @REVISION, or a folder, which opens with ., / or ~"
        )
    return TextSource("hf", "/".join(names), config=config, revision=revision or None, split=split, field=field)
