"""`lrsa generate` and `lrsa chat`, from the command line to what is printed; the commands of docs/answers.md run."""

import io
import json
import re
import shlex
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import yaml

from lrsa_lightning import LRSA, Vanilla, generate
from lrsa_lightning.cli import main
from lrsa_lightning.conversation import display
from lrsa_lightning.conversation.source import ModelSource
from lrsa_lightning.trained_model import load_checkpoint
from tests.conftest import make_model
from tests.refusals import cases, refused, write
from tests.runs import EACH_STEP, command

pytestmark = pytest.mark.usefixtures("in_tmp_path")
ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "answers.md").read_text(encoding="utf-8")
DOCUMENT = "\n\n".join(f"House {number} is green." for number in range(30))
QUESTION = "Which colour has house 3?"
LAST_LINE = (
    r"[\d,]+ prompt tokens in \d+\.\d s \([\d,]+/s\), \d+ new in \d+\.\d s \([\d,]+\.\d/s\); "
    r"cache [\d.,]+ KiB, dense [\d.,]+ KiB \(\d+%\)"
)
SMALL_LRSA = ["--attention=LRSA", "--attention.lag_size=16", "--attention.sink_size=4"]


@pytest.fixture
def folder(tokenizer) -> str:
    """A Hugging Face folder, with a document beside it."""
    make_model(vocab_size=len(tokenizer)).save_pretrained("folder")
    tokenizer.save_pretrained("folder")
    write("book.txt", DOCUMENT)
    return "folder"


def type_in(monkeypatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


def answer(model, tokenizer, mode, prompt: str, num_new: int, **arguments) -> str:
    """What our `generate` answers to a prompt."""
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
    new = generate(model, ids, mode, num_new, **arguments)[0]
    return tokenizer.decode(new, skip_special_tokens=True).strip()


def test_a_run_answers_by_its_last_checkpoint_under_its_own_mode_and_template(two_steps, tokenizer, capsys):
    write("book.txt", DOCUMENT)
    mode, model = LRSA(lag_size=16, sink_size=4), load_checkpoint(Path("runs/x/checkpoints/step=2.ckpt")).model
    turn = [{"role": "user", "content": f"{DOCUMENT}\n\n{QUESTION}"}]  # trained on chats: data.template is auto
    prompt = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    expected = answer(model, tokenizer, mode, prompt, 12, eos_token_id=[0, 2])
    capsys.readouterr()
    for source in ("runs/x", "runs/x/checkpoints/step=2.ckpt"):
        main(["generate", source, QUESTION, "--document=book.txt", "--max_new_tokens=12"])
        printed = capsys.readouterr()
        assert printed.out.strip() == expected
        assert printed.out.endswith("\n")
        assert re.fullmatch(LAST_LINE, printed.err.splitlines()[-1])
        assert 0 < int(re.search(r"\((\d+)%\)", printed.err)[1]) < 70


@pytest.mark.parametrize(("options", "mode"), [([], Vanilla()), (SMALL_LRSA, LRSA(lag_size=16, sink_size=4))])
def test_a_folder_answers_in_its_chat_template_with_full_attention_unless_one_is_given(
    folder, tokenizer, capsys, caplog, options, mode
):
    turn = [{"role": "user", "content": f"{DOCUMENT}\n\n{QUESTION}"}]
    prompt = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    expected = answer(make_model(vocab_size=len(tokenizer)), tokenizer, mode, prompt, 12, eos_token_id=[0, 2])
    main(["generate", folder, QUESTION, "--document=book.txt", "--max_new_tokens=12", *options])
    assert capsys.readouterr().out.strip() == expected
    assert ("names no attention mode: full attention" in caplog.text) == (not options)


def test_the_question_may_come_from_stdin(folder, monkeypatch, capsys):
    main(["generate", folder, QUESTION, "--max_new_tokens=8"])
    type_in(monkeypatch, f"{QUESTION}\n")
    main(["generate", folder, "--max_new_tokens=8"])
    first, second = capsys.readouterr().out.splitlines()
    assert first == second


def test_the_same_seed_gives_the_same_answer(folder, capsys):
    answers = []
    for seed in (1, 1, 2):
        main(["generate", folder, QUESTION, "--temperature=2", "--max_new_tokens=20", f"--seed={seed}"])
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] != answers[2]


def test_a_chat_goes_on_with_one_cache(folder, tokenizer, monkeypatch, capsys):
    """Its last answer is that to all of the turns at once, and a turn prefills its own tokens alone."""
    type_in(monkeypatch, f"{QUESTION}\n\nAnd house 4?\n/exit\nNobody asks this.\n")
    main(["chat", folder, "--document=book.txt", "--max_new_tokens=6", "--template=base", *SMALL_LRSA])
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if "prompt tokens" in line]
    tokens = [int(line.split()[0]) for line in lines]
    assert len(lines) == 3
    assert tokens[0] > 300 > 60 > max(tokens[1:])
    model, mode = make_model(vocab_size=len(tokenizer)), LRSA(lag_size=16, sink_size=4)
    ids = tokenizer(f"{DOCUMENT}\n\n{QUESTION}", add_special_tokens=False).input_ids
    assert tokens[0] + tokens[1] == len(ids)
    answers = []
    for following in ("\n\nAnd house 4?", ""):
        new = generate(model, torch.tensor([ids]), mode, 6)[0].tolist()
        answers.append(tokenizer.decode(new, skip_special_tokens=True).strip())
        ids += new + tokenizer(following, add_special_tokens=False).input_ids
    assert printed.out.split() == " ".join(answers).split()


def test_a_question_too_many_is_refused_at_a_terminal_and_the_chat_goes_on(folder, monkeypatch, capsys):
    typed = iter([QUESTION, "long " * 1000, "And house 4?", "/exit"])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    main(["chat", folder, "--max_new_tokens=6"])
    error = capsys.readouterr().err
    assert "is beyond the model's 1024 positions" in error
    assert error.count("prompt tokens") == 2


def test_the_prefill_shows_its_progress_in_lines_where_there_is_no_terminal(folder, monkeypatch, capsys):
    options = ["--document=book.txt", "--max_new_tokens=2", "--prefill_chunk_size=100"]
    main(["generate", folder, QUESTION, *options])
    error = capsys.readouterr().err
    assert "prefill" not in error
    assert "\n\n" not in error
    monkeypatch.setattr(display, "_LINE_EVERY_S", 0)
    main(["generate", folder, QUESTION, *options])
    lines = re.findall(r"prefill: (\d+) of (\d+) tokens\n", capsys.readouterr().err)
    assert len(lines) >= 2
    assert all(int(done) < int(total) for done, total in lines)


def test_the_prefill_shows_a_bar_at_a_terminal_and_restores_it_after_an_interruption(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr", Terminal())
    with suppress(KeyboardInterrupt), display.PrefillProgress() as progress:
        progress(0, 200)
        progress(100, 200)
        raise KeyboardInterrupt
    shown = sys.stderr.getvalue()
    assert "prefill" in shown
    assert "50%" in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")  # the cursor is back


def test_too_little_memory_is_one_line_with_the_way_out(folder, monkeypatch, capsys):
    def too_large(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(ModelSource, "load", too_large)
    refused(capsys, lambda: main(["generate", folder, QUESTION]), "memory is too small", "--prefill_chunk_size")


def test_ctrl_c_elsewhere_ends_without_a_traceback(folder, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(ModelSource, "load", interrupted)
    with pytest.raises(SystemExit) as caught:
        main(["generate", folder, QUESTION])
    assert caught.value.code == 130


@pytest.mark.parametrize("line", re.findall(r"^lrsa (?:generate|chat) .*$", PAGE, re.MULTILINE))
def test_the_commands_of_the_readme_run(line, two_steps, folder, monkeypatch, capsys):
    type_in(monkeypatch, "Who wrote it?\n")
    words = shlex.split(line.replace("configs/", f"{ROOT}/configs/"), comments=True)[1:]
    named = {"runs/NAME": "runs/x", "Qwen/Qwen2.5-1.5B-Instruct": folder}
    main([*(named.get(word, word) for word in words), "--max_new_tokens=4"])
    assert re.fullmatch(LAST_LINE, capsys.readouterr().err.splitlines()[-1])


WRONG = [
    (["generate", "folder", ""], "the question is empty"),
    (["generate", "folder", "x", "--document=absent.txt"], "absent.txt", "No such file"),
    (["generate", "folder", "x", "--document=binary"], "binary is no text, it holds NUL bytes"),
    (["chat", "folder", "--document=latin"], "latin is not UTF-8 text"),
    (["chat", "folder", "--document=blank"], "--document blank is empty"),
    (["chat", "folder", "--document=."], ". cannot be read (Is a directory)"),
    (["generate", "runs/x", "x"], "runs/x does not exist"),
    (["generate", "./foldr", "x"], "./foldr does not exist: did you mean folder?"),
    (["generate", "nothing", "x"], "nothing holds no model: give runs/NAME"),
    (["generate", "weightless", "x"], "weightless lacks the weights of model.safetensors"),
    (["generate", "folder/model.safetensors", "x"], "config.yaml does not exist: give a checkpoint of runs/"),
    (["generate", "folder", "x", "--max_new_tokens=2000"], "beyond the model's 1024 positions"),
    (["chat", "folder", "--max_new_tokens=1024"], "beyond the model's 1024 positions"),
    (["generate", "folder", "x", "--max_new_tokens=0"], "max_new_tokens is 0, but must be a whole number"),
    (["generate", "folder", "x", "--temprature=1"], "--temprature is no option of `lrsa generate`: did you mean temp"),
    (["chat", "folder", "--num_beams", "4"], "--num_beams is no option of `lrsa chat`: one streamed answer has no use"),
    (["generate", "folder", "x", "--temperature=0"], "temperature is 0, but must be a finite number above 0"),
    (["generate", "folder", "x", "--do_sample=false", "--top_p=0.5"], "so top_p has no effect: leave one out"),
    (["generate", "folder", "x", "--attention=absent.yaml"], "absent.yaml (--attention) does not exist"),
    (["generate", "folder", "x", "--attention=LRSA", "--attention.skip_layers=[7]"], "skip_layers [7] do not exist"),
    (["generate", "folder", "x", "--template=alpaca"], "template is alpaca, but must be one of"),
    (["generate"], "model"),
]


@cases(WRONG)
def test_what_is_wrong_is_one_line_before_weights_are_read(folder, monkeypatch, capsys, wrong, said):
    write("binary", b"a\0b")
    write("latin", "gr\xfcn".encode("latin-1"))
    write("blank", " \n")
    for name in ("nothing", "weightless"):
        Path(name).mkdir()
    write("weightless/config.json", Path("folder/config.json").read_bytes())
    monkeypatch.setattr(ModelSource, "load", lambda *_: pytest.fail("the weights are read"))
    type_in(monkeypatch, "x\n")
    refused(capsys, lambda: main(wrong), *said)


def test_a_run_whose_mode_is_unknown_is_refused_with_the_way_out(two_steps, capsys):
    config = Path("runs/x/config.yaml")
    saved = yaml.safe_load(config.read_text())
    saved["model"]["attention"]["class_path"] = "gone.Mode"
    config.write_text(yaml.safe_dump(saved))
    with pytest.raises(SystemExit) as caught:
        main(["generate", "runs/x", "x"])
    assert caught.value.code == 2
    assert "give --attention" in capsys.readouterr().err.splitlines()[-1]


def test_blanks_before_an_answer_are_not_printed(tokenizer, capsys):
    stream = display.AnswerStream(tokenizer)
    for text in (" \n It is green.\n\n It is.", " Yes."):
        for token in tokenizer(text)["input_ids"]:
            stream.put(torch.tensor([token]))
        stream.end()
    assert capsys.readouterr().out == "It is green.\n\n It is.\nYes.\n"


def test_a_document_of_one_word_waits_for_its_question(folder, monkeypatch, capsys):
    write("book.txt", "Green")
    type_in(monkeypatch, f"{QUESTION}\n")
    main(["chat", folder, "--document=book.txt", "--template=base", "--max_new_tokens=2"])
    assert capsys.readouterr().err.count("prompt tokens") == 1


def make_sample(folder: str) -> None:
    config = Path(folder, "generation_config.json")
    config.write_text(json.dumps({**json.loads(config.read_text()), "do_sample": True, "temperature": 5.0}))


def assert_samples_by_default(source: str, capsys) -> None:
    printed = []
    for options in ([], ["--do_sample=true", "--temperature=5"], ["--do_sample=false"]):
        main(["generate", source, QUESTION, "--max_new_tokens=12", *options])
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] != printed[2]


def test_sampling_of_the_model_that_a_run_started_from_is_its_default(folder, arguments, capsys):
    make_sample(folder)
    del arguments["model.from_config"]
    main(command({**arguments, "model.name_or_path": folder, "trainer.max_steps": "1", "trainer.callbacks": EACH_STEP}))
    capsys.readouterr()
    assert_samples_by_default("runs/x", capsys)


def test_sampling_of_the_folder_is_the_default(folder, capsys):
    """As in transformers: generation_config.json decides what the command line leaves open."""
    make_sample(folder)
    assert_samples_by_default(folder, capsys)
