"""The datamodule: files -> samples -> token ids -> micro-batches already shifted and padded."""

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning
from torch.utils.data import DataLoader

from lrsa_lightning.data.augment import Extender
from lrsa_lightning.data.dataset import LongContextDataset, LossWeighting
from lrsa_lightning.data.encoder import SampleEncoder, TooLong
from lrsa_lightning.data.files import files_of
from lrsa_lightning.data.loader import ResumableLoader
from lrsa_lightning.data.mixture import mix, weight_of
from lrsa_lightning.data.packing import pack_rows
from lrsa_lightning.data.prepared import PreparedSamples, content_key, prepare, wait_for
from lrsa_lightning.data.sample import Sample
from lrsa_lightning.data.sampler import GlobalBatchSampler, accumulation_steps
from lrsa_lightning.data.sources import SourceName, read_samples
from lrsa_lightning.data.template import TemplateName, make_template
from lrsa_lightning.data.tokenization import load_tokenizer
from lrsa_lightning.errors import InputError

log = logging.getLogger(__name__)


class LongContextDataModule(lightning.LightningDataModule):
    """Questions about long documents, extended to the training length."""

    def __init__(
        self,
        train_files: str | Sequence[str] = (),
        val_files: str | Sequence[str] = (),
        source: SourceName | Literal["demo"] = "auto",
        fields: dict[str, str] | None = None,
        mixture: dict[str, float] | None = None,
        tokenizer: str | None = None,
        template: TemplateName = "base",
        seq_len: int = 32768,
        global_batch_size: int = 16,
        micro_batch_size: int = 1,
        extend: bool = True,
        delimiter: str = "Document",
        too_long: TooLong = "drop",
        bad_rows: Literal["error", "skip"] = "error",
        loss_weighting: LossWeighting = "token",
        packing: bool = False,
        num_workers: int = 1,
        prepare_workers: int | None = None,
        cache_dir: str = ".lrsa_cache",
        model_name_or_path: str | None = None,
        seed: int = 42,
    ):
        """
        Args:
            train_files: .json, .jsonl or .parquet files (.gz too) or hub ids to learn from.
            val_files: the same, whose answers are scored in validation; none: no validation loss.
            source: format of the files; auto goes by their columns; demo makes its own small data set and tokenizer in
                cache_dir.
            fields: names of the columns document, question and answer, for files of one's own.
            mixture: how often a sample of a train file is in the data, by the file's name; 0.5 takes half of them.
            tokenizer: hub id or folder; the model's own when None.
            template: base (text alone) or chatml (the tokenizer's chat template).
            seq_len: tokens of a training row.
            global_batch_size: samples of an optimizer step, over all devices; gradient accumulation follows from it.
            micro_batch_size: samples of one forward pass on one device.
            extend: fill short samples up with sections from other samples.
            delimiter: the word that opens such a section.
            too_long: what becomes of samples longer than seq_len: left out, or their document shortened from the
                middle.
            bad_rows: whether a malformed row is an error or left out and counted.
            loss_weighting: what counts as much as any other: each learned token, or each sample.
            packing: put several samples into a row, each attending within itself; needs extend: false.
            num_workers: processes that make batches.
            prepare_workers: processes that tokenise; one for each core when None.
            cache_dir: where prepared data lies, in a folder for each content.
            model_name_or_path: linked from the model.
            seed: of the order and of the extension, linked from seed_everything.
        """
        super().__init__()
        self.train_files = [train_files] if isinstance(train_files, str) else list(train_files)
        self.val_files = [val_files] if isinstance(val_files, str) else list(val_files)
        self.source = source
        self.tokenizer_name = tokenizer or model_name_or_path
        self.template = template
        self.seq_len = seq_len
        self.global_batch_size = global_batch_size
        self.micro_batch_size = micro_batch_size
        self.extend = extend
        self.delimiter = delimiter
        self.fields = fields
        self.mixture = mixture or {}
        self.too_long = too_long
        self.bad_rows = bad_rows
        self.loss_weighting = loss_weighting
        self.packing = packing
        self.num_workers = num_workers
        self.prepare_workers = prepare_workers or os.cpu_count()
        self.cache_dir = Path(cache_dir)
        self.seed = seed
        self.tokenizer = None
        self._train: LongContextDataset | None = None
        self._val: LongContextDataset | None = None

    def prepare_data(self) -> None:
        """Makes the demo's data set, loads the tokenizer and looks at each file, before anything costs time.

        Raises:
            InputError: no file is named, one does not exist or begins with a malformed row, a weight of the mixture
                belongs to none, there is no tokenizer, or the batch sizes do not divide.
        """
        self._accumulation()
        if self.packing and self.extend:
            raise InputError(
                "data.packing fills rows with whole samples, data.extend with sections of others: set data.extend to "
                "false, or leave packing out"
            )
        if self.packing and self.trainer is not None and self._data_parallel_size < self.trainer.world_size:
            raise InputError(
                "packed rows cannot be shared by ranks: each of their samples begins its own chunks. Set data.packing "
                "to false, or sequence_parallel.size of trainer.strategy to 1"
            )
        if self.source == "demo":
            from lrsa_lightning.data.demo import make_demo_data

            make_demo_data(self.cache_dir / "demo")
        self.tokenizer = self._load_tokenizer()
        make_template(self.template, self.tokenizer)
        for file in self._train_files() + self.val_files:
            next(self._read(file), None)

    def setup(self, stage: str) -> None:
        """Prepares the samples, on one process of a node, and sets the trainer's gradient accumulation."""
        if stage == "fit":
            self.trainer.accumulate_grad_batches = self._accumulation()
        if self._train is not None:
            return
        self.tokenizer = self.tokenizer or self._load_tokenizer()
        self._train = self._dataset(self.prepare("train"))
        self._val = self._dataset(self.prepare("val")) if self.val_files else None

    def prepare(self, what: Literal["train", "val"]) -> PreparedSamples:
        """The tokenised samples, from the cache where the same were prepared before.

        Raises:
            InputError: a row is malformed, no sample fits, or the disk is full.
        """
        folder = self.cache_dir / "prepared" / f"{what}-{self._key(what)}"
        if self.trainer is not None and self.trainer.local_rank > 0:
            return wait_for(folder)
        if folder.is_dir():
            return self._reported(PreparedSamples(folder))
        train = self.train_samples()
        samples = train if what == "train" else [sample for file in self.val_files for sample in self._read(file)]
        template = make_template(self.template, self.tokenizer)
        extender = Extender(train, self.delimiter, self.seed) if self.extend else None
        encode = SampleEncoder(self.tokenizer, template, self.seq_len, extender, self.too_long)
        return self._reported(prepare(folder, samples, encode, self.prepare_workers, f"{what} samples"))

    def train_samples(self) -> list[Sample]:
        """The samples of the train files, each file's as often as the mixture says."""
        files = self._train_files()
        weights = [weight_of(file, files, self.mixture) for file in files]
        return [s for f, weight in zip(files, weights, strict=True) for s in mix(self._read(f), weight, self.seed)]

    def _reported(self, prepared: PreparedSamples) -> PreparedSamples:
        counts = prepared.report
        if changed := counts["left out"] + counts["shortened"]:
            log.warning(
                "%d of %d samples are longer than data.seq_len %d: %d left out, %d shortened",
                *(changed, counts["read"], self.seq_len, counts["left out"], counts["shortened"]),
            )
        if len(prepared) == 0:
            raise InputError(
                f"no sample fits data.seq_len {self.seq_len}: raise it, set data.too_long to shorten, or give "
                "data.train_files shorter texts"
            )
        return prepared

    def _key(self, what: str) -> str:
        """Of all that the prepared samples depend on; the validation's too may be extended with training text."""
        files = self._train_files() + (self.val_files if what == "val" else [])
        return content_key(
            [files_of(file) or file for file in files],
            self.tokenizer,
            what=what,
            names=[Path(file).name for file in files],
            source=self.source,
            fields=self.fields,
            mixture=[weight_of(file, self._train_files(), self.mixture) for file in self._train_files()],
            template=self.template,
            seq_len=self.seq_len,
            extend=self.extend,
            delimiter=self.delimiter,
            too_long=self.too_long,
            bad_rows=self.bad_rows,
            seed=self.seed,
        )

    def train_dataloader(self):
        return self._loader(self._train, self.global_batch_size, self.micro_batch_size, shuffle=True)

    def val_dataloader(self):
        if self._val is None:
            # Lightning skips a validation without batches, callbacks included: `lrsa validate` gets an empty one.
            validates = self.trainer is not None and self.trainer.state.fn == "validate"
            return DataLoader([{}], batch_size=None) if validates else []
        # One row at a time, so that no sample is left over.
        return self._loader(self._val, self._data_parallel_size, 1, shuffle=False)

    def align_progress(self, checkpoint: dict) -> None:
        """Makes a checkpoint's counts those of its last whole step, in this run's micro-batches.

        The run may have other ranks or micro-batches than the one that wrote it; and Lightning also writes amid the
        first step after a resume, whose gradients are then lost.
        """
        loops = checkpoint["loops"]["fit_loop"]
        current = loops["epoch_loop.batch_progress"]["current"]
        (loader,) = loops["state_dict"]["combined_loader"]
        read = loader["consumed"] // (self.micro_batch_size * self._data_parallel_size)
        # The checkpoint is written within a micro-batch, ready but not yet completed: that difference stays.
        current.update({name: read - (current["ready"] - count) for name, count in current.items()})
        if current["completed"] < current["processed"]:
            # A run that was resumed at the end of an epoch has not counted the next one as begun.
            epoch = loader["epoch"]
            begun = {"ready": epoch + 1, "started": epoch + 1, "processed": epoch, "completed": epoch}
            loops["epoch_progress"] = {"total": dict(begun), "current": dict(begun)}
        steps = loops["epoch_loop.state_dict"]
        steps["_batches_that_stepped"] = min(steps["_batches_that_stepped"], checkpoint["global_step"] - 1)

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """This rank's part of the rows, where ranks share sequences."""
        sharding = getattr(self.trainer.strategy, "sharding", None)
        return sharding.cut(batch) if sharding is not None and batch else batch

    @property
    def _data_parallel_size(self) -> int:
        if self.trainer is None:
            return 1
        return getattr(self.trainer.strategy, "data_parallel_size", self.trainer.world_size)

    @property
    def _data_parallel_rank(self) -> int:
        if self.trainer is None:
            return 0
        return getattr(self.trainer.strategy, "data_parallel_rank", self.trainer.global_rank)

    def _accumulation(self) -> int:
        steps = accumulation_steps(self.global_batch_size, self.micro_batch_size, self._data_parallel_size)
        given = self.trainer.accumulate_grad_batches if self.trainer is not None else 1
        if given not in (1, steps):
            raise InputError(
                f"trainer.accumulate_grad_batches {given} contradicts data.global_batch_size "
                f"{self.global_batch_size}, from which {steps} follows: leave it out"
            )
        return steps

    def _train_files(self) -> list[str]:
        files = [str(self.cache_dir / "demo" / "train.jsonl")] if self.source == "demo" else self.train_files
        if not files:
            raise InputError("data.train_files is empty: name at least one .json, .jsonl or .parquet file or hub id")
        return files

    def _read(self, file: str) -> Iterator[Sample]:
        skipped: list[str] | None = [] if self.bad_rows == "skip" else None
        yield from read_samples(file, "auto" if self.source == "demo" else self.source, self.fields, skipped)
        if skipped:
            log.warning("%d malformed rows of %s left out; the first: %s", len(skipped), file, skipped[0])

    def _load_tokenizer(self):
        name = str(self.cache_dir / "demo" / "tokenizer") if self.source == "demo" else self.tokenizer_name
        if name is None:
            raise InputError("data.tokenizer is not set, and there is no model.name_or_path to take it from")
        return load_tokenizer(name, "data.tokenizer")

    def _dataset(self, samples: PreparedSamples) -> LongContextDataset:
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        rows = pack_rows([length - 1 for length in samples.num_ids], self.seq_len) if self.packing else None
        return LongContextDataset(samples, samples.num_answer, self.seq_len, pad, self.loss_weighting, rows)

    def _loader(
        self, dataset: LongContextDataset, global_batch_size: int, micro_batch_size: int, shuffle: bool
    ) -> ResumableLoader:
        sampler = GlobalBatchSampler(
            dataset.row_weights,
            dataset.row_targets,
            global_batch_size,
            micro_batch_size,
            self._data_parallel_rank,
            self._data_parallel_size,
            self.seed,
            shuffle,
        )
        return ResumableLoader(dataset, sampler, self.num_workers)
