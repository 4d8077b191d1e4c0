"""What the loading libraries raise over a model's files, as one error that names the cause and the next action."""

import logging
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import transformers

from esa.artifact.hub import OFFLINE_VARIABLE, TOKEN_VARIABLE, cause
from esa.errors import EsaError, ModelError
from esa.spec.sections import Model as ModelSection

_LACKING = re.compile(r"does not appear to have a file named (\S*\w)")
_NO_PICKLE = "esa opens no pickle (.bin, .pt): load the model elsewhere and save it again with save_pretrained"


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the progress bars and warnings of the loading libraries: what matters is raised or noted by esa."""
    level = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    loggers = {name: logging.getLogger(name) for name in ("huggingface_hub", "accelerate")}
    levels = {name: logger.level for name, logger in loggers.items()}
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for logger in loggers.values():
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
        for name, logger in loggers.items():
            logger.setLevel(levels[name])
        if bars:
            transformers.logging.enable_progress_bar()


def explained(section: ModelSection) -> AbstractContextManager[None]:
    """Turn what the loading libraries raise over the model of ``section`` into ModelError."""
    return explaining(section.id, section.revision)


@contextmanager
def explaining(model_id: str, revision: str | None = None) -> Iterator[None]:
    """Turn what the loading libraries raise over a model into ModelError; anything that is no matter of content passes."""
    try:
        yield
    except EsaError:
        raise
    except Exception as error:
        found = _of_the_hub(error, f"'{model_id}'", revision) or _of_the_files(error, f"'{model_id}'")
        if found is None:
            raise
        raise found from error


def _of_the_hub(error: Exception, quoted: str, revision: str | None) -> ModelError | None:
    match cause(error):
        case "gated":
            return ModelError(
                f"{quoted} is gated: its owner asks you to accept a licence",
                where="model.id",
                hint=f"accept it on the model's page, then set {TOKEN_VARIABLE} to your access token",
            )
        case "revision":
            return ModelError(
                f"{quoted} has no branch, tag or commit '{revision}' on the hub",
                where="model.revision",
                hint="the model's page lists them under 'Files and versions'",
            )
        case "unknown":
            return ModelError(
                f"{quoted} is no local folder, and the hub knows no such model or revision",
                where="model.id",
                hint=f"check the spelling; a private model needs {TOKEN_VARIABLE}",
            )
        case "offline":
            return ModelError(
                f"{quoted} is no local folder, the hub does not answer, and the local cache does not hold it whole",
                where="model.id",
                hint=f"check the network and {OFFLINE_VARIABLE}, or give a local folder or .gguf file",
            )
    return None


def _of_the_files(error: Exception, quoted: str) -> ModelError | None:
    text = str(error)
    if "Unrecognized configuration class" in text:
        return ModelError(f"{quoted} is not a causal language model", where="model.id")
    if "custom code" in text or "trust_remote_code" in text:
        return ModelError(
            f"{quoted} needs code from its own repository",
            where="model.id",
            hint="read that code, then set model.trust_remote_code = true",
        )
    if (file := _LACKING.search(text)) and file[1] != "model.safetensors":
        return ModelError(f"{quoted} lacks the file {file[1]}", where="model.id", hint="its download may be incomplete")
    if "model.safetensors" in text:
        return ModelError(f"{quoted} holds no model.safetensors", where="model.id", hint=_NO_PICKLE)
    if "backend tokenizer" in text:
        return ModelError(f"{quoted} holds no tokenizer that can be read", where="model.id")
    readers = type(error).__module__.split(".")[0] in ("struct", "safetensors", "gguf")
    if readers or isinstance(error, OSError | ValueError | KeyError | RuntimeError):
        first = text.strip().splitlines()[0] if text.strip() else type(error).__name__
        return ModelError(f"{quoted} cannot be loaded: {first}", where="model.id")
    return None
