"""The datamodule: files -> samples -> token ids -> micro-batches already shifted and padded."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import lightning
from torch.utils.data import DataLoader

from lrsa_lightning.data.augment import Extender
from lrsa_lightning.data.corpus import Corpus, demo_file
from lrsa_lightning.data.data_file import data_files
from lrsa_lightning.data.dataset import LongContextDataset, LossWeighting, pack_rows
from lrsa_lightning.data.encoder import Learn, SampleEncoder, TooLong
from lrsa_lightning.data.loader import ResumableLoader, outlive_signals
from lrsa_lightning.data.prepared import PreparedSamples, checked_counts, content_key, prepare, wait_for
from lrsa_lightning.data.prepared_folder import alone, find_complete
from lrsa_lightning.data.sampler import EveryRowSampler, GlobalBatchSampler, accumulation_steps
from lrsa_lightning.data.sources import SourceName
from lrsa_lightning.data.template import TemplateChoice, TemplateName, TemplateOfEach
from lrsa_lightning.data.tokenization import load_tokenizer
from lrsa_lightning.data.trained_content import TrainedContent, check_files, check_samples
from lrsa_lightning.data.transfer import for_transfer
from lrsa_lightning.errors import InputError
from lrsa_lightning.ranges import AtLeastTwo, MixtureWeight, NonNegativeInt, PositiveInt, checked

# Settings that the rows depend on besides the samples.
_OF_ROWS = ("template", "seq_len", "extend", "delimiter", "too_long", "learn", "seed")


class LongContextDataModule(lightning.LightningDataModule):
    """Questions about long documents, extended to the training length.

    Attributes:
        trained_on: content of the train files, from the checkpoint that a fit resumes from. With it, changed files are
            found before anything is prepared; without it, when Lightning loads the checkpoint.
        allow_changed_files: lets a fit go on although the train files have changed since the checkpoint.
        run_template: the template for what the model is asked, from `setup` on.
    """

    trained_on: TrainedContent | None = None
    allow_changed_files: bool = False
    run_template: TemplateName = "base"

    @checked
    def __init__(
        self,
        train_files: str | dict[str, Any] | Sequence[str | dict[str, Any]] = (),
        val_files: str | dict[str, Any] | Sequence[str | dict[str, Any]] | None = None,
        source: SourceName = "auto",
        fields: dict[str, str] | None = None,
        mixture: dict[str, MixtureWeight] | None = None,
        tokenizer: str | None = None,
        template: TemplateChoice = "auto",
        seq_len: AtLeastTwo = 32768,
        global_batch_size: PositiveInt = 16,
        micro_batch_size: PositiveInt = 1,
        extend: bool = True,
        delimiter: str = "Document",
        too_long: TooLong = "drop",
        learn: Learn = "all",
        bad_rows: Literal["error", "skip"] = "error",
        loss_weighting: LossWeighting = "token",
        packing: bool = False,
        num_workers: NonNegativeInt = 1,
        prepare_workers: PositiveInt | None = None,
        cache_dir: str = ".lrsa_cache",
        model_name_or_path: str | None = None,
        seed: int = 42,
    ):
        """
        Args:
            train_files: files, folders or hub ids to train on; docs/data.md lists their kinds. A mapping with path also
                takes source, fields, template, rows, and of the hub split, subset, revision, streaming.
            val_files: the same for the validation loss, each sample once; null for no validation loss.
            source: format of the files; auto finds it by their columns; demo makes its own small data set and tokenizer
                in cache_dir.
            fields: your names of the format's columns; files without these columns are read by their own format.
            mixture: how often each sample of a train file is in the data, by the file's name; 0.5 takes half of them.
            tokenizer: hub id or folder; the model's own when None.
            template: base (text alone) or chatml (the tokenizer's chat template); auto is chatml for chats where the
                tokenizer has one, else base.
            seq_len: tokens of a training row.
            global_batch_size: samples of an optimizer step, over all devices; gradient accumulation follows from it.
            micro_batch_size: samples of one forward pass on one device.
            extend: fill up short samples with sections from other samples.
            delimiter: the word that opens such a section.
            too_long: drop leaves out samples longer than seq_len; shorten cuts the middle of their document.
            learn: all answers of a chat, or its last one; under template base always the last one.
            bad_rows: whether a malformed row, or one that the tokenizer has no tokens for, is an error, or is skipped
                and counted.
            loss_weighting: whether each label token or each sample has the same weight.
            packing: put several samples into a row, each attending within itself; needs extend: false.
            num_workers: processes that make batches.
            prepare_workers: processes that tokenise; one for each core when None.
            cache_dir: folder of prepared data, with a subfolder for each content.
            model_name_or_path: linked from the model.
            seed: seed of the order and of the extension, linked from seed_everything.

        Raises:
            InputError: an argument is out of range, or contradicts another.
        """
        super().__init__()
        if not delimiter.strip():
            raise InputError(f"data.delimiter is {delimiter!r}: give a word that opens a section")
        if packing and extend:
            raise InputError(
                "data.packing fills rows with complete samples, data.extend with sections of others: set data.extend "
                "to false, or leave packing out"
            )
        train, val = data_files("data.train_files", train_files), data_files("data.val_files", val_files)
        if source == "demo":
            train = [demo_file(train, cache_dir)]
        self.corpus = Corpus(train, val, source, fields or {}, mixture or {}, bad_rows, seed)
        self.train_files, self.val_files = ([file.path for file in files] for files in (train, val))
        self.source = source
        self.tokenizer_name = tokenizer or model_name_or_path
        self.template, self.learn, self.too_long = template, learn, too_long
        self.seq_len, self.extend, self.delimiter = seq_len, extend, delimiter
        self.global_batch_size = global_batch_size
        self.micro_batch_size = micro_batch_size
        self.loss_weighting, self.packing = loss_weighting, packing
        self.num_workers, self.prepare_workers = num_workers, prepare_workers or os.cpu_count()
        self.cache_dir = Path(cache_dir)
        self.seed = seed
        self.tokenizer = None
        self._found_complete: set[Path] = set()
        self._train: LongContextDataset | None = None
        self._val: LongContextDataset | None = None

    def prepare_data(self) -> None:
        """Makes the demo's data set, loads the tokenizer and checks each file, before anything takes long.

        Raises:
            InputError: `Corpus.check` refuses the files, there is no tokenizer, the batch sizes do not divide, or the
                train files have changed since the checkpoint that the fit resumes from.
        """
        self._accumulation()
        if self.packing and self.trainer is not None and self._data_parallel_size < self.trainer.world_size:
            raise InputError(
                "sequence parallelism cannot split packed rows: each of their samples begins its own chunks. Set "
                "data.packing to false, or sequence_parallel.size of trainer.strategy to 1"
            )
        if self.source == "demo":
            from lrsa_lightning.data.demo import make_demo_data

            make_demo_data(self.cache_dir / "demo")
        self.tokenizer = self._load_tokenizer()
        self.corpus.check()
        self.templates.check(self.corpus.firsts())
        if self.trained_on is not None and not self.allow_changed_files:
            check_files(self.trained_on, self.corpus.train_content())
        for what in ("train", "val") if self.val_files else ("train",):
            # A corrupt folder goes now: other processes of this node open it as soon as they see it.
            with alone(folder := self._folder(what)):
                if find_complete(folder):
                    self._found_complete.add(folder)

    def setup(self, stage: str) -> None:
        """Prepares the samples in one process of a node, and sets the trainer's gradient accumulation."""
        if stage == "fit":
            self.trainer.accumulate_grad_batches = self._accumulation()
        if self._train is not None:
            return
        self.tokenizer = self.tokenizer or self._load_tokenizer()
        self.run_template = self.templates.of_run(self.corpus.firsts("train"))
        self._train = self._dataset(self.prepare("train"))
        if stage == "fit":
            self._train_sampler()  # refuses too few rows before the model is loaded
        self._val = self._dataset(self.prepare("val")) if self.val_files else None

    def prepare(self, what: Literal["train", "val"]) -> PreparedSamples:
        """The tokenised samples, from the cache if it has them.

        Raises:
            InputError: a row is malformed, no sample fits, or the disk is full.
        """
        folder = self._folder(what)
        if self.trainer is not None and self.trainer.local_rank > 0:
            return wait_for(folder)
        with alone(folder):
            if folder in self._found_complete or find_complete(folder):
                return checked_counts(PreparedSamples(folder), what, self.seq_len)
            train = self.corpus.samples("train") if what == "train" or self.extend else []
            samples = train if what == "train" else self.corpus.samples("val")
            extender = Extender(train, self.delimiter, self.seed) if self.extend else None
            how = (self.templates, self.seq_len, extender, self.too_long, self.learn)
            encode = SampleEncoder(self.tokenizer, *how).rows
            self.templates.warn_of_lost_roles(samples)
            skip = self.corpus.bad_rows == "skip"
            prepared = prepare(folder, samples, encode, self.prepare_workers, f"{what} samples", skip)
            return checked_counts(prepared, what, self.seq_len)

    def state_dict(self) -> TrainedContent:
        """What the run is trained on, for a checkpoint."""
        content = self.corpus.train_content()
        return {"train_files": content, "samples": self._train.samples.content, "template": self.run_template}

    def load_state_dict(self, state_dict: TrainedContent) -> None:
        """Compares the data with what the run was trained on before the checkpoint.

        Raises:
            InputError: they differ, and `allow_changed_files` is not set.
        """
        if self.trainer.state.fn == "fit" and not self.allow_changed_files:
            check_files(state_dict, self.corpus.train_content())
            check_samples(state_dict, self._train.samples.content, self._train.samples.folder)

    @property
    def templates(self) -> TemplateOfEach:
        """The template of each sample, once the tokenizer is loaded."""
        return TemplateOfEach(self.template, self.tokenizer)

    def _folder(self, what: str) -> Path:
        return self.cache_dir / "prepared" / f"{what}-{self._key(what)}"

    def _key(self, what: str) -> str:
        """Key of the prepared samples. Training text may extend validation samples, and is part of their key."""
        return content_key(
            self.corpus.contents(what),
            self.tokenizer,
            what=what,
            **self.corpus.settings(what),
            **{name: getattr(self, name) for name in _OF_ROWS},
        )

    def train_dataloader(self):
        return ResumableLoader(self._train, self._train_sampler(), self.num_workers)

    def val_dataloader(self):
        if self._val is None:
            # Without a batch Lightning would also skip the callbacks: `lrsa validate` gets an empty batch.
            validates = self.trainer is not None and self.trainer.state.fn == "validate"
            return DataLoader([{}], batch_size=None) if validates else []
        weights, num_labels = self._val.row_weights, self._val.row_labels
        sampler = EveryRowSampler(weights, num_labels, self._data_parallel_rank, self._data_parallel_size)
        # The sampler's items are complete micro-batches: there is nothing to collate.
        return DataLoader(
            self._val, batch_size=None, sampler=sampler, num_workers=self.num_workers, worker_init_fn=outlive_signals
        )

    @property
    def samples_at_a_time(self) -> int:
        """Samples that all ranks read together while each reads one micro-batch."""
        return self.micro_batch_size * self._data_parallel_size

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """This rank's segment of the rows, under sequence parallelism, in memory from which the device reads."""
        if not batch:
            return batch
        sharding = getattr(self.trainer.strategy, "sharding", None)
        return for_transfer(batch if sharding is None else sharding.cut(batch), self.trainer.strategy.root_device)

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
        given = self.trainer.accumulate_grad_batches if self.trainer is not None else 1
        return accumulation_steps(self.global_batch_size, self.micro_batch_size, self._data_parallel_size, given)

    def _train_sampler(self) -> GlobalBatchSampler:
        return GlobalBatchSampler(
            self._train.row_weights,
            self._train.row_labels,
            self.global_batch_size,
            self.micro_batch_size,
            self._data_parallel_rank,
            self._data_parallel_size,
            self.seed,
        )

    def _load_tokenizer(self):
        name = str(self.cache_dir / "demo" / "tokenizer") if self.source == "demo" else self.tokenizer_name
        if name is None:
            raise InputError("data.tokenizer is not set, and there is no model.name_or_path to take it from")
        return load_tokenizer(name, "data.tokenizer")

    def _dataset(self, samples: PreparedSamples) -> LongContextDataset:
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        rows = pack_rows([length - 1 for length in samples.num_ids], self.seq_len) if self.packing else None
        return LongContextDataset(samples, samples.num_labels, self.seq_len, pad, self.loss_weighting, rows)
