"""The subcommands of `lrsa`; each module imports what its subcommand needs."""

SUBCOMMANDS = {
    "fit": "train a model, or resume a run: lrsa fit --config configs/demo.yaml",
    "validate": "measure a checkpoint: lrsa validate --config runs/NAME/config.yaml --ckpt_path last",
    "plan": "predict memory and time of a run: lrsa plan --config configs/experiment/paper_32k.yaml --device h100",
    "generate": 'answer a question about a document: lrsa generate runs/NAME "QUESTION" --document book.txt',
    "chat": "answer questions one after the other, on one cache: lrsa chat runs/NAME --document book.txt",
}
