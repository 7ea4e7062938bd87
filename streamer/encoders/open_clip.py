"""Any open_clip model as an encoder: loading its weights, computing its model id, and running it."""

from __future__ import annotations

import ctypes
import difflib
import hashlib
import json
import os
import re
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import huggingface_hub
import numpy as np
import numpy.typing as npt
import open_clip
import structlog
import torch
from huggingface_hub.utils.tqdm import disable_progress_bars
from open_clip.factory import load_state_dict, parse_model_name
from PIL import Image

from streamer.encoders.model_config import require_allowed
from streamer.encoders.protocol import SIDES, EncoderError
from streamer.encoders.towers import BoundedTokenizer, ImageTower, TextTower, can_pack_side
from streamer.encoders.tuning import (
    Arithmetic,
    Choice,
    Tower,
    batch_size,
    candidates,
    fastest,
    thread_count,
    use_threads,
)
from streamer.machine import require_threads
from streamer.preprocessing import Preprocessing

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from streamer.encoders.protocol import Side
    from streamer.preprocessing import Frame
    from streamer.settings import Device, Dtype

log = structlog.get_logger()
T = TypeVar("T", bound=Tower)

CONFIG_NAME = "open_clip_config.json"
CHECKPOINT_SUFFIXES = (".safetensors", ".bin", ".pth")
"""The file names that open_clip accepts as weights in a ``local-dir:``."""
IMAGE_BATCH = 32
"""Frames per call on a CPU, where four reach 90 % of the best throughput of any size."""
MAX_IMAGE_BATCH = 512
_FRAMES_OF_A_CLIP = 8
_COMMIT = re.compile("[0-9a-f]{40}")
_HUB_FILES = ("*.json", "*.txt", "*.model", "open_clip_*.safetensors", "open_clip_*.bin")
"""Of a repository: configurations, vocabularies and weights; no code."""

_NO_MEMORY = "can't allocate memory"
"""In the words of torch's allocator on a processor, which has no exception of its own."""


class OpenClipEncoder:
    """An open_clip model, one vector per frame; implements :class:`streamer.encoders.Encoder`."""

    vectors_per_frame = 1

    def __init__(
        self,
        network: torch.nn.Module,
        preprocess: Callable[[Image.Image], torch.Tensor],
        tokenizer: Callable[[Sequence[str]], torch.Tensor],
        config: dict[str, Any],
        *,
        device: torch.device,
        dtype: Dtype = "auto",
        sides: Collection[Side] = SIDES,
    ) -> None:
        """Take a loaded model, in float32 on the CPU; ``config`` is its architecture (``model_cfg``).

        The fastest precision for each of ``sides`` is determined, which also warms it up. Other sides are discarded.
        """
        self.model_id = _model_id(network, config)
        self.dim = int(config["embed_dim"])
        visual: Any = network.visual
        self.prepare = _preprocessing(visual.preprocess_cfg, preprocess)
        self.arithmetic: dict[Side, Arithmetic] = {}
        """The chosen precision of each side."""
        self.device = device
        network.eval()

        def fastest_of(side: Side, build: Callable[[Arithmetic], T]) -> T | None:
            if side not in sides:
                return None
            found = _measure(side, candidates(dtype, device, packable=can_pack_side(network, side)), build, device)
            self.arithmetic[side] = found.arithmetic
            return found.tower

        self._images = fastest_of("images", lambda how: ImageTower(network, visual.preprocess_cfg, how, device))
        self._texts = fastest_of("texts", lambda how: TextTower(network, tokenizer, how, device))
        self.image_batch = IMAGE_BATCH
        if self._images is not None and device.type != "cpu":
            self.image_batch = batch_size(self._images.run_batch, IMAGE_BATCH, MAX_IMAGE_BATCH)
            log.info("image batch measured", frames=self.image_batch)

    @classmethod
    def load(
        cls,
        model: str,
        pretrained: str | None = None,
        *,
        dtype: Dtype = "auto",
        device: Device = "auto",
        threads: int | None = None,
        sides: Collection[Side] = SIDES,
    ) -> OpenClipEncoder:
        """Load a model: built-in name and tag, name and checkpoint file, ``local-dir:PATH``, ``hf-hub:REPO@COMMIT``.

        Raises :class:`EncoderError` with one line that names the faulty part. A model is never used with random
        weights, about which open_clip only warns. Raises :class:`~streamer.machine.MachineError` if this machine lacks
        the threads for it, where GNU's OpenMP would end the process.
        """
        chosen = _device(device)
        if chosen.type == "cuda":
            # Otherwise a "float32" convolution has a 10-bit mantissa, and it is the reference for all comparisons.
            torch.backends.cudnn.allow_tf32 = False
        source = _locate(model, pretrained)
        if threads is not None:
            torch.set_num_threads(threads)
        require_threads(torch.get_num_threads() - 1)
        try:
            network, preprocess = open_clip.create_model_from_pretrained(source.name, source.pretrained)
        except Exception as error:
            raise EncoderError(
                _explain(source, error), setting="pretrained" if source.pretrained else "model"
            ) from error
        try:
            tokenizer = _bound(open_clip.get_tokenizer(source.name, **source.tokenizer_options))
        except Exception as error:
            raise EncoderError(f"model {source.name} has no usable tokenizer: {_one_line(error)}") from error
        try:
            encoder = cls(network, preprocess, tokenizer, source.config, device=chosen, dtype=dtype, sides=sides)
        except RuntimeError as error:
            raise EncoderError(
                f"model {source.name} does not run with dtype {dtype} on {chosen.type}: {_one_line(error)}",
                setting="dtype",
            ) from error
        if threads is None and "OMP_NUM_THREADS" not in os.environ and chosen.type == "cpu":
            torch.set_num_threads(encoder.measure_threads())
        del network
        _trim()
        return encoder

    @property
    def computes_in(self) -> str:
        """The precision in use; of both sides if they differ."""
        return "; ".join(dict.fromkeys(str(each) for each in self.arithmetic.values()))

    @property
    def computes_on(self) -> str:
        """The kind of device."""
        return str(self.device.type)

    def encode_images(self, prepared: Sequence[Frame]) -> npt.NDArray[np.float32]:
        """Encode frames of the model's size in one batch: (n, 1, dim), L2-normalised; n >= 1."""
        if self._images is None:
            raise RuntimeError("the encoder was loaded without its image side")
        with _lack_of_memory():
            return self._images.encode(prepared)[:, np.newaxis]

    def encode_texts(self, queries: Sequence[str]) -> npt.NDArray[np.float32]:
        """Encode queries in one batch: (n, dim), L2-normalised; n >= 1.

        Texts longer than the model's context are truncated, as open_clip's tokenizer does.
        """
        if self._texts is None:
            raise RuntimeError("the encoder was loaded without its text side")
        with _lack_of_memory():
            return self._texts.encode(queries)

    def warm_up(self) -> None:
        """Run each side once, with the current number of threads, which become the pool of the thread that calls."""
        require_threads(torch.get_num_threads() - 1)
        for tower in (self._images, self._texts):
            if tower is not None:
                tower.run()

    def measure_threads(self) -> int:
        """Return the best number of torch threads, for the side that benefits from the most."""
        most = torch.get_num_threads()
        if most == 1:
            return 1
        runs: dict[str, Callable[[], object]] = {}
        if self._images is not None:
            # Enough frames to keep more than a few threads busy, as many as a short clip has.
            runs["images"] = partial(self._images.run_batch, _FRAMES_OF_A_CLIP)
        if self._texts is not None:
            runs["texts"] = self._texts.run
        counts = {side: thread_count(run, most) for side, run in runs.items()}
        log.info("threads measured", most=most, **counts)
        return max(counts.values())


def _measure(
    side: Side, arithmetics: Sequence[Arithmetic], build: Callable[[Arithmetic], T], device: torch.device
) -> Choice[T]:
    """Choose a precision and log it. Raises :class:`RuntimeError` if the first one cannot be used."""
    if device.type == "cpu":
        # The thread's own CPU time, so that other load during the start does not count.
        with use_threads(1):
            choice = fastest(arithmetics, build, time.thread_time)
    else:
        choice = fastest(arithmetics, build, time.perf_counter)
    measured = [str(trial) for trial in choice.trials]
    log.info("precision measured", side=side, chosen=str(choice.arithmetic), measured=measured)
    return choice


def _trim() -> None:
    """Return free memory to the system: glibc keeps the memory of discarded copies, as much as the model takes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _device(device: Device) -> torch.device:
    """Return the configured device. Raises :class:`EncoderError` if it does not exist."""
    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise EncoderError("torch finds no CUDA device", setting="device")
    return torch.device("cuda" if has_cuda and device != "cpu" else "cpu")


def _preprocessing(config: Mapping[str, Any], reference: Callable[[Image.Image], torch.Tensor]) -> Preprocessing:
    """Return open_clip's evaluation transform without torch. Raises :class:`EncoderError` if the results differ."""
    height, width = (config["size"],) * 2 if isinstance(config["size"], int) else config["size"]
    mine = Preprocessing(height, width, config["resize_mode"], config["interpolation"], config["fill_color"])
    mean, std = (torch.tensor(config[name]).view(-1, 1, 1) for name in ("mean", "std"))
    noise = np.random.default_rng(0)
    for shape in ((height + 37, 2 * width + 11, 3), (height // 2 + 5, width // 3 + 2, 3)):
        frame = noise.integers(0, 256, shape, np.uint8)
        own = torch.from_numpy(mine(frame).copy()).permute(2, 0, 1).float().div(255).sub(mean).div(std)
        theirs = reference(Image.fromarray(frame))
        if own.shape != theirs.shape or not torch.allclose(own, theirs, atol=1e-6):
            raise EncoderError("the model's preprocessing cannot be described by an open_clip configuration")
    return mine


def _model_id(network: Any, config: dict[str, Any]) -> str:
    """Identify the vector space: ``clip<dim>-<64 bits of a SHA-256>``.

    The hash covers the architecture, the preprocessing in use and every weight in float32, by name; it does not depend
    on the model's source, nor on the precision of its file, which float32 represents exactly. Call it before the model
    is cast.
    """
    digest = hashlib.sha256(_canonical([config, network.visual.preprocess_cfg]))
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(_canonical([name, list(tensor.shape)]))
        digest.update(tensor.float().contiguous().numpy().astype("<f4", copy=False))
    return f"clip{config['embed_dim']}-{digest.hexdigest()[:16]}"


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _bound(tokenizer: Any) -> Callable[[Sequence[str]], torch.Tensor]:
    """Bound the cost of open_clip's own tokenizer; those of the tokenizers library, which are linear, are unchanged."""
    return BoundedTokenizer(tokenizer) if type(tokenizer) is open_clip.SimpleTokenizer else tokenizer


@dataclass(frozen=True, slots=True)
class _Source:
    """A model whose parts all exist, though they have not been read.

    ``name`` and ``pretrained`` are open_clip's arguments; ``config`` is the architecture (``model_cfg``);
    ``checkpoints`` are the candidates for the weights file.
    """

    name: str
    pretrained: str | None
    config: dict[str, Any]
    checkpoints: tuple[Path, ...]

    @property
    def tokenizer_options(self) -> dict[str, bool]:
        """Arguments of the tokenizer: one of transformers asks on a terminal unless it is told to run no code."""
        return {"trust_remote_code": False} if self.config.get("text_cfg", {}).get("hf_tokenizer_name") else {}


def _locate(model: str, pretrained: str | None) -> _Source:
    """Find a model's parts; a tag or repository is downloaded. Raises :class:`EncoderError`."""
    disable_progress_bars()  # they would write a repository's file names to the terminal, or into the log
    try:
        schema, identifier = parse_model_name(model)
    except ValueError as error:
        raise EncoderError(f"model {model}: {_one_line(error)}") from None
    if schema is None:
        return _locate_builtin(identifier.replace("/", "-"), pretrained)
    if pretrained:
        raise EncoderError(
            f"pretrained {pretrained!r} cannot be combined with model {model}, which has weights", setting="pretrained"
        )
    return _locate_local(model, Path(identifier)) if schema == "local-dir" else _locate_hub(model, identifier)


def _locate_local(model: str, directory: Path) -> _Source:
    if not directory.is_dir():
        raise EncoderError(f"model {model}: no such directory")
    config_path = directory / CONFIG_NAME
    if not config_path.is_file():
        raise EncoderError(f"model {model}: the directory has no {CONFIG_NAME}")
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))["model_cfg"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EncoderError(
            f"model {model}: {CONFIG_NAME} is not a JSON object with a model_cfg: {_one_line(error)}"
        ) from None
    require_allowed(model, config)
    checkpoints = tuple(path for path in sorted(directory.iterdir()) if path.suffix in CHECKPOINT_SUFFIXES)
    if not checkpoints:
        raise EncoderError(f"model {model}: the directory has no weights ({', '.join(CHECKPOINT_SUFFIXES)})")
    return _Source(model, None, config, checkpoints)


def _locate_hub(model: str, repository: str) -> _Source:
    """Download a repository as it was at one commit: what it holds may change, and so what would run here."""
    name, _, revision = repository.partition("@")
    if not _COMMIT.fullmatch(revision):
        raise EncoderError(f"model {model}: name the commit, hf-hub:{name}@ and its 40 hexadecimal digits")
    try:
        folder = huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=list(_HUB_FILES))
    except Exception as error:
        raise EncoderError(f"model {model} cannot be downloaded: {_one_line(error)}") from error
    return _locate_local(f"local-dir:{folder}", Path(folder))


def _locate_builtin(name: str, pretrained: str | None) -> _Source:
    config = open_clip.get_model_config(name)
    if config is None:
        close = difflib.get_close_matches(name, open_clip.list_models(), n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(close)}?" if close else "open_clip.list_models() lists all models"
        raise EncoderError(f"unknown model {name!r}; {hint}")
    tags = ", ".join(open_clip.list_pretrained_tags_by_model(name))
    choice = f"a checkpoint file or one of the tags {tags}" if tags else "a checkpoint file (there are no tags)"
    if not pretrained:
        raise EncoderError(f"model {name} needs pretrained weights: give {choice}", setting="pretrained")
    if open_clip.is_pretrained_cfg(name, pretrained):
        try:
            checkpoint = open_clip.download_pretrained(open_clip.get_pretrained_cfg(name, pretrained))
        except Exception as error:
            raise EncoderError(
                f"{pretrained!r} of model {name} cannot be downloaded: {_one_line(error)}", setting="pretrained"
            ) from error
    elif Path(pretrained).is_file():
        checkpoint = pretrained
    elif os.sep in pretrained or Path(pretrained).suffix:
        raise EncoderError(f"{pretrained!r}: no such checkpoint file", setting="pretrained")
    else:
        raise EncoderError(f"unknown tag {pretrained!r} for model {name}; give {choice}", setting="pretrained")
    return _Source(name, pretrained, config, (Path(checkpoint),))


def _explain(source: _Source, error: Exception) -> str:
    """Return one line that says why a model with existing parts does not load, by trying each part alone.

    open_clip passes on any exception of its parts, so the type of ``error`` is not informative.
    """
    try:
        open_clip.create_model(source.name, load_weights=False, pretrained_text=False)
    except Exception as unbuildable:  # noqa: BLE001 - a wrong config can raise anything
        return f"model {source.name} cannot be built: {type(unbuildable).__name__}: {_one_line(unbuildable)}"
    for checkpoint in source.checkpoints:
        if checkpoint.suffix in (".npz", ".npy"):
            continue  # a checkpoint of big_vision, which open_clip reads directly into the model
        try:
            load_state_dict(str(checkpoint))
        except Exception as unreadable:  # noqa: BLE001 - any of pickle's, zip's, safetensors' and torch's errors
            return f"checkpoint {checkpoint} cannot be read: {_one_line(unreadable)}"
    mismatch = _one_line(error).removeprefix("Error(s) in loading state_dict for ")
    return f"the weights do not fit model {source.name}: {mismatch}"


@contextmanager
def _lack_of_memory() -> Iterator[None]:
    """Raise torch's errors that say that there is no memory, of the machine or the device, as MemoryError."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or _NO_MEMORY in str(error):
            raise MemoryError(_one_line(error)) from error
        raise


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:300]
