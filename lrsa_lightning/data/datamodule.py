"""The datamodule: files -> samples -> token ids -> micro-batches already shifted and padded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import lightning
from torch.utils.data import DataLoader

from lrsa_lightning.data.augment import Extender
from lrsa_lightning.data.dataset import LongContextDataset, SampleEncoder
from lrsa_lightning.data.longalign import Sample, read_longalign
from lrsa_lightning.data.sampler import GlobalBatchSampler, accumulation_steps
from lrsa_lightning.data.template import TemplateName, make_template
from lrsa_lightning.errors import InputError


class LongContextDataModule(lightning.LightningDataModule):
    """Long-document question answering in LongAlign's format."""

    def __init__(
        self,
        train_files: str | Sequence[str] = (),
        val_files: str | Sequence[str] = (),
        source: Literal["longalign", "demo"] = "longalign",
        tokenizer: str | None = None,
        template: TemplateName = "base",
        seq_len: int = 32768,
        global_batch_size: int = 16,
        micro_batch_size: int = 1,
        extend: bool = True,
        delimiter: str = "Document",
        num_workers: int = 1,
        cache_dir: str = ".lrsa_cache",
        model_name_or_path: str | None = None,
        seed: int = 42,
    ):
        """
        Args:
            train_files: JSONL files to learn from.
            val_files: JSONL files whose answers are scored in validation; none: no validation loss.
            source: format of the files; demo makes its own small data set and tokenizer in cache_dir.
            tokenizer: hub id or folder; the model's own when None.
            template: base (text alone) or chatml (the tokenizer's chat template).
            seq_len: tokens of a training row.
            global_batch_size: samples of an optimizer step, over all devices; gradient accumulation follows from it.
            micro_batch_size: samples of one forward pass on one device.
            extend: fill short samples up with sections from other samples.
            delimiter: the word that opens such a section.
            num_workers: processes that make batches.
            cache_dir: where prepared data lies.
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
        self.num_workers = num_workers
        self.cache_dir = Path(cache_dir)
        self.seed = seed
        self.tokenizer = None
        self._samples: tuple[list[Sample], list[Sample]] | None = None
        self._train: LongContextDataset | None = None
        self._val: LongContextDataset | None = None

    def prepare_data(self) -> None:
        """Makes the demo's data set, loads the tokenizer and reads the files, before anything costs time.

        Raises:
            InputError: no file is named, one does not exist or holds a malformed line, there is no tokenizer, or the
                batch sizes do not divide.
        """
        self._accumulation()
        if self.source == "demo":
            from lrsa_lightning.data.demo import make_demo_data

            make_demo_data(self.cache_dir / "demo")
        self.tokenizer = self._load_tokenizer()
        self._samples = self._read()

    def setup(self, stage: str) -> None:
        """Tokenises the samples and sets the trainer's gradient accumulation."""
        if stage == "fit":
            self.trainer.accumulate_grad_batches = self._accumulation()
        if self._train is not None:
            return
        self.tokenizer = self.tokenizer or self._load_tokenizer()
        train, val = self._samples or self._read()
        encode = SampleEncoder(
            self.tokenizer,
            make_template(self.template, self.tokenizer),
            self.seq_len,
            Extender(train, self.delimiter, self.seed) if self.extend else None,
        )
        self._train = self._prepare(train, encode)
        self._val = self._prepare(val, encode) if val else None
        self._samples = None

    def train_dataloader(self):
        return self._loader(self._train, self.global_batch_size, self.micro_batch_size, shuffle=True)

    def val_dataloader(self):
        if self._val is None:
            return []
        # One row at a time, so that no sample is left over.
        return self._loader(self._val, self._data_parallel_size, 1, shuffle=False)

    @property
    def _data_parallel_size(self) -> int:
        return self.trainer.world_size if self.trainer is not None else 1

    def _accumulation(self) -> int:
        steps = accumulation_steps(self.global_batch_size, self.micro_batch_size, self._data_parallel_size)
        given = self.trainer.accumulate_grad_batches if self.trainer is not None else 1
        if given not in (1, steps):
            raise InputError(
                f"trainer.accumulate_grad_batches {given} contradicts data.global_batch_size "
                f"{self.global_batch_size}, from which {steps} follows: leave it out"
            )
        return steps

    def _read(self) -> tuple[list[Sample], list[Sample]]:
        train_files = [self.cache_dir / "demo" / "train.jsonl"] if self.source == "demo" else self.train_files
        if not train_files:
            raise InputError("data.train_files is empty: name at least one JSONL file in LongAlign's format")
        train, val = ([s for file in files for s in read_longalign(file)] for files in (train_files, self.val_files))
        return train, val

    def _load_tokenizer(self):
        from transformers import AutoTokenizer

        name = str(self.cache_dir / "demo" / "tokenizer") if self.source == "demo" else self.tokenizer_name
        if name is None:
            raise InputError("data.tokenizer is not set, and there is no model.name_or_path to take it from")
        try:
            return AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise InputError(f"data.tokenizer {name!r} cannot be loaded: {str(error).splitlines()[0]}") from error

    def _prepare(self, samples: list[Sample], encode: SampleEncoder) -> LongContextDataset:
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        return LongContextDataset.prepare(samples, encode, self.seq_len, pad)

    def _loader(
        self, dataset: LongContextDataset, global_batch_size: int, micro_batch_size: int, shuffle: bool
    ) -> DataLoader:
        from torchdata.stateful_dataloader import StatefulDataLoader

        sampler = GlobalBatchSampler(
            dataset.num_answer_tokens,
            global_batch_size,
            micro_batch_size,
            self.trainer.global_rank if self.trainer is not None else 0,
            self._data_parallel_size,
            self.seed,
            shuffle,
        )
        # The sampler's items are whole micro-batches, so the loader collates nothing.
        return StatefulDataLoader(dataset, batch_size=None, sampler=sampler, num_workers=self.num_workers)
