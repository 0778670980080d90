"""Samples of a cohort: which volume comes when (a pure function of seed and epoch), and how a batch is put together."""

import functools
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from datamodules.cache import ImageFiles, VolumeCache
from datamodules.preprocessing import Affine
from datamodules.problems import CohortError

READ_AHEAD = 2  # batches


class SampleKey(NamedTuple):
    """What identifies one draw of one sample: enough to augment it the same way again anywhere."""

    position: int
    epoch: int
    occurrence: int


@dataclass(frozen=True)
class Sample:
    """One image set of one participant: a row of the cohort table as the network will meet it."""

    participant_id: str
    session_id: str
    image_id: str
    dataset: str
    site: str
    split: str
    files: ImageFiles
    targets: dict[str, float]
    covariates: tuple[float, ...] = field(default=())


class CohortDataset(Dataset[dict[str, Any]]):
    """Preprocessed volumes of a list of samples, read from the cache.

    Args:
        samples: The samples, in a fixed order.
        cache: Where their preprocessed volumes are.
        transform: Changes an image (C, D, H, W) where it is read, given the image, its affine, its sample and its key.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        cache: VolumeCache,
        transform: Callable[[Tensor, Affine, Sample, SampleKey], Tensor] | None = None,
    ) -> None:
        self.samples = list(samples)
        self.cache = cache
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        sample = self.samples[key.position]
        volume = self.cache.load(sample.files)
        image = torch.from_numpy(np.asarray(volume.array))
        return {
            "image": image if self.transform is None else self.transform(image, volume.affine, sample, key),
            "affine": torch.from_numpy(np.asarray(volume.affine)),
            "target": sample.targets,
            "covariates": torch.tensor(sample.covariates, dtype=torch.float32),
            "participant_id": sample.participant_id,
            "session_id": sample.session_id,
            "image_id": sample.image_id,
            "dataset": sample.dataset,
            "site": sample.site,
            "split": sample.split,
            "epoch": key.epoch,
            "occurrence": key.occurrence,
        }


TEXT_KEYS = ("participant_id", "session_id", "image_id", "dataset", "site", "split")


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stack samples into the batch that `datamodules.base` documents; images stay in half precision."""
    batch: dict[str, Any] = {name: [item[name] for item in items] for name in TEXT_KEYS}
    images = [item["image"] for item in items]
    # One copy, from the mapped files to where a GPU can fetch the batch; loader processes have no GPU.
    pinned = _has_gpu() and get_worker_info() is None
    memory = torch.empty((len(images), *images[0].shape), dtype=images[0].dtype, pin_memory=pinned)
    batch["image"] = torch.stack(images, out=memory)
    for name in ("affine", "covariates"):
        batch[name] = torch.stack([item[name] for item in items])
    for name in ("epoch", "occurrence"):
        batch[name] = torch.tensor([item[name] for item in items], dtype=torch.int64)
    batch["target"] = {
        name: torch.tensor([item["target"][name] for item in items], dtype=torch.float32) for name in items[0]["target"]
    }
    return batch


class KeySampler(Sampler[SampleKey]):
    """Yield the keys of one epoch for one rank.

    The permutation (or, with weights, the draw with replacement) depends on seed and epoch alone, so that it is the
    same for any number of workers, ranks and resumptions. Training drops the incomplete last batch; evaluation neither
    pads nor drops.

    Args:
        num_samples: Number of samples.
        seed: Seed of the permutation.
        shuffle: Permute (training) or keep the order (evaluation).
        weights: One weight per sample to draw with replacement in proportion to it.
        batch_size: Samples per step over all ranks; only training needs it.
        rank: This process.
        world_size: Number of processes.
    """

    def __init__(
        self,
        num_samples: int,
        seed: int = 0,
        *,
        shuffle: bool = False,
        weights: Sequence[float] | None = None,
        batch_size: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.num_samples = num_samples
        self.seed = seed
        self.shuffle = shuffle
        self.weights = None if weights is None else torch.as_tensor(weights, dtype=torch.float64)
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self._resumed = (0, 0)

    def resume(self, epoch: int, num_seen: int) -> None:
        """Begin in the middle: the iteration of this epoch leaves out the first samples of this rank.

        Args:
            epoch: The epoch.
            num_seen: How many of its samples this rank has had.
        """
        self.epoch = epoch
        self._resumed = (epoch, num_seen)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; Lightning calls this."""
        self.epoch = epoch

    def order(self, epoch: int) -> list[int]:
        """Return the sample indices of an epoch over all ranks."""
        if not self.shuffle:
            return list(range(self.num_samples))
        generator = torch.Generator().manual_seed((self.seed << 24) + epoch)
        if self.weights is None:
            order = torch.randperm(self.num_samples, generator=generator)
        else:
            order = torch.multinomial(self.weights, self.num_samples, replacement=True, generator=generator)
        complete = self.num_samples - self.num_samples % min(self.batch_size, self.num_samples)
        return [int(index) for index in order[:complete]]

    def __iter__(self) -> Iterator[SampleKey]:
        epoch, num_seen = self._resumed
        keys = self._keys()
        return islice(keys, num_seen, None) if self.epoch == epoch else keys

    def _keys(self) -> Iterator[SampleKey]:
        seen: Counter[int] = Counter()
        for position, index in enumerate(self.order(self.epoch)):
            if position % self.world_size == self.rank:
                yield SampleKey(index, self.epoch, seen[index])
            seen[index] += 1

    def __len__(self) -> int:
        return len(range(self.rank, len(self.order(0)), self.world_size))


class CohortLoader(DataLoader[dict[str, Any]]):
    """A loader that reads ahead, and continues in the middle of an epoch.

    Without loader processes a thread puts the next batches together while the device works on this one: what it does
    is reading and copying, and both leave the interpreter to others. Where an epoch continues is the training's to say
    (see `KeySampler.resume`), because batches that were fetched ahead have not been trained on. What the loader keeps
    in a checkpoint is what must not have changed.

    Args:
        dataset: The samples.
        kernel: What augments them (see `Augmentation.kernel_on`).
        **options: Those of torch's DataLoader.
    """

    def __init__(self, dataset: CohortDataset, *, kernel: str = "none", **options: Any) -> None:
        super().__init__(dataset, **options)
        self.kernel = kernel
        # A transform draws from torch's global generator, which belongs to the training thread.
        self.reads_ahead = self.num_workers == 0 and dataset.transform is None

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]  # torch promises its own class
        """Iterate over the batches of an epoch."""
        batches = super().__iter__()
        return self._read_ahead(batches) if self.reads_ahead else batches

    def _read_ahead(self, batches: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        reader = ThreadPoolExecutor(1, thread_name_prefix="loader", initializer=_same_device())
        try:
            coming = deque(reader.submit(next, batches, None) for _ in range(READ_AHEAD))
            while (batch := coming.popleft().result()) is not None:
                coming.append(reader.submit(next, batches, None))
                yield batch
        finally:
            reader.shutdown(cancel_futures=True)

    @property
    def keys(self) -> KeySampler:
        """The sampler."""
        assert isinstance(self.sampler, KeySampler)
        return self.sampler

    def state_dict(self) -> dict[str, Any]:
        """Return what the batches depend on."""
        return {
            "num_samples": self.keys.num_samples,
            "batch_size": self.keys.batch_size,
            "seed": self.keys.seed,
            "kernel": self.kernel,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Refuse to continue what was begun with others.

        Raises:
            CohortError: If the samples, their batches, the seed or the kernel of the augmentation are others.
        """
        if (own := self.state_dict()) != state:
            changes = ", ".join(
                f"{name} {state.get(name)} then, {own[name]} now" for name in own if own[name] != state.get(name)
            )
            raise CohortError(f"The training cannot be resumed: its data has changed ({changes}). Start a new run.")


def _same_device() -> Callable[[], None] | None:
    """Return what makes a thread use this one's GPU: a thread begins with the first."""
    if not _has_gpu():
        return None
    return functools.partial(torch.cuda.set_device, torch.cuda.current_device())


@functools.cache
def _has_gpu() -> bool:
    return torch.cuda.is_available()  # takes a third of a millisecond
