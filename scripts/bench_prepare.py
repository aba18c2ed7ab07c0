"""Times the preparation of data against the tokenizer alone, on the same text with the same number of processes.

The text is generated: documents of random words, a tenth of them Chinese, as in LongAlign.
Usage: python scripts/bench_prepare.py --tokenizer Qwen/Qwen2.5-1.5B [--megabytes 200] [--workers 2]
"""

import multiprocessing
import os
import random
import tempfile
import time
from pathlib import Path

from lrsa_lightning.command_line.input_boundary import report_input_errors
from lrsa_lightning.command_line.script_parser import ScriptParser
from lrsa_lightning.data.augment import Extender
from lrsa_lightning.data.encoder import SampleEncoder
from lrsa_lightning.data.prepared import prepare
from lrsa_lightning.data.sample import Sample
from lrsa_lightning.data.template import make_template
from lrsa_lightning.data.tokenization import load_tokenizer
from lrsa_lightning.haystack import random_words
from lrsa_lightning.ranges import PositiveFiniteFloat, PositiveInt

SEQ_LEN = 32768


def make_samples(megabytes: float) -> list[Sample]:
    """Documents of 5 to 60 kB, each with a question and a short answer."""
    rng = random.Random(0)
    words = [random_words(rng) for _ in range(5000)]
    characters = [chr(rng.randrange(0x4E00, 0x6000)) for _ in range(2000)]
    samples, size = [], 0
    while size < megabytes * 1e6:
        is_chinese, target, paragraphs, length = rng.random() < 0.1, rng.randint(5000, 60000), [], 0
        while length < target:
            units, joint = (characters, "") if is_chinese else (words, " ")
            paragraphs.append(joint.join(rng.choices(units, k=rng.randint(20, 120))) + ("。" if is_chinese else "."))
            length += len(paragraphs[-1].encode())
        document = "\n\n".join(paragraphs) + "\n\n"
        samples.append(Sample(f"{len(samples)}", document, "What is it about?", "About " + rng.choice(words) + "."))
        size += length
    return samples


def count_tokens(text: str) -> int:
    return len(_tokenizer(text, add_special_tokens=False)["input_ids"])


@report_input_errors
def main() -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument("--tokenizer", required=True, help="hub id or folder")
    parser.add_argument("--megabytes", type=PositiveFiniteFloat, default=200)
    parser.add_argument("--workers", type=PositiveInt, default=os.cpu_count())
    options = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    global _tokenizer
    _tokenizer = load_tokenizer(options.tokenizer, "--tokenizer")
    samples = make_samples(options.megabytes)
    template = make_template("base", _tokenizer)

    started = time.perf_counter()
    with multiprocessing.get_context("fork").Pool(options.workers) as pool:
        raw_tokens = sum(pool.imap(count_tokens, [s.prompt + s.answer for s in samples], chunksize=4))
    raw = raw_tokens / (time.perf_counter() - started)
    print(f"{options.megabytes:g} MB, {len(samples)} samples, {raw_tokens} tokens, {options.workers} processes")
    print(f"tokenizer alone             {raw / 1e6:.2f} M tokens/s")
    for name, extender in (("prepare", None), ("prepare, extended to 32K", Extender(samples, "Document", 0))):
        with tempfile.TemporaryDirectory() as folder:
            encode = SampleEncoder(_tokenizer, template, SEQ_LEN, extender, "shorten")
            started = time.perf_counter()
            prepared = prepare(Path(folder) / "prepared", samples, encode, options.workers)
            seconds = time.perf_counter() - started
            tokens = sum(len(row.ids) for row in prepared) if extender else raw_tokens
        print(f"{name:<28}{tokens / seconds / 1e6:.2f} M tokens/s, {tokens / seconds / raw:.0%} of it", flush=True)


if __name__ == "__main__":
    main()
