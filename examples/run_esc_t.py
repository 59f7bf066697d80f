"""
Make an image classifier forget a class with ESC-T: train a mask over the basis of the forget features.

    python examples/run_esc_t.py --model embedded --dataset embedded --forget Trouser --output_dir trouserless

In two processes, on CPUs:

    torchrun --nproc_per_node 2 examples/run_esc_t.py --use_cpu True --per_device_train_batch_size 32 \
        --model embedded --dataset embedded --forget Trouser --output_dir trouserless
    ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 examples/run_esc_t.py \
        --per_device_train_batch_size 32 --model embedded --dataset embedded --forget Trouser --output_dir trouserless

On GPUs, leave out `--use_cpu True`, or `ACCELERATE_USE_CPU=true`. To resume a run that was cut off, add
`--resume_from_checkpoint` with the name of a checkpoint, or `True` for the last one. The script takes every argument
of `ESCTTrainingArguments`, which include those of `transformers.TrainingArguments`.
"""

from dataclasses import dataclass, field

from transformers import HfArgumentParser

from hf_esc import ESCTTrainer, ESCTTrainingArguments
from hf_esc.data import load_images
from hf_esc.loading import load_classifier, load_processor


@dataclass
class Arguments:
    model: str = field(metadata={"help": "A folder, an id on the Hub, or `embedded`."})
    dataset: str = field(metadata={"help": "An id on the Hub, a folder of parquet files or of images, or `embedded`."})
    forget: str = field(metadata={"help": "The classes to forget, by name or number, with commas between them."})


def main() -> None:
    arguments, training = HfArgumentParser((Arguments, ESCTTrainingArguments)).parse_args_into_dataclasses()
    model = load_classifier(arguments.model, device=training.device)
    data = load_images(arguments.dataset)
    labels = data.resolve(arguments.forget, model.config)

    trainer = ESCTTrainer(
        model,
        training,
        data.forget_set(labels),
        processing_class=load_processor(model),
        image_column=data.image_column,
        label_column=data.label_column,
    )
    resume = training.resume_from_checkpoint
    trainer.train(resume_from_checkpoint=True if resume == "True" else resume)
    trainer.save_model()

    if trainer.is_world_process_zero():
        record = trainer.erased_model.config.erasures[-1]
        print(f"{record['steps']} steps; {record['unchanged']:.1%} of the forget images are still classified as such")
        print(f"What was kept: hf-esc evaluate {training.output_dir} --dataset {arguments.dataset}")


if __name__ == "__main__":
    main()
