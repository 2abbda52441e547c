"""W8A8 with a mixed calibration set and a data set of one's own, in the way of msModelSlim's guide.

    python examples/mixed_calibration.py MODEL mix_config.json OUT

MODEL is a checkpoint folder. mix_config.json names the data sets (docs/calibration.md). Only
samples that the model answers right are used. With transformers' classes instead of tare's the
script works just as well: change the two imports that are marked.
"""
import argparse

from tare import AutoModelForCausalLM, AutoTokenizer  # or: from transformers import …
from tare import (AntiOutlier, AntiOutlierConfig, CalibrationData, Calibrator, DatasetProcessorBase,
                  QuantConfig, get_anti_dataset, get_calib_dataset)

QUESTIONS = [("Is green tea fermented? Answer yes or no:", "no"),
             ("Is the sky blue on a clear day? Answer yes or no:", "yes"),
             ("Is two larger than three? Answer yes or no:", "no")]


class YesOrNo(DatasetProcessorBase):
    """Questions that are answered with a word; positive if the model's text begins with it."""

    def __init__(self, tokenizer, model):
        super().__init__("", tokenizer, model)
        self.ori_prompts = [question for question, _ in QUESTIONS]
        self.ori_answers = [answer for _, answer in QUESTIONS]

    def process_data(self, indexs):
        return [{"prompt": self.ori_prompts[i], "ans": self.ori_answers[i]} for i in indexs]

    def verify_positive_prompt(self, prompts, labels):
        positive = []
        for prompt, label in zip(prompts, labels):
            inputs = self.tokenizer(prompt, return_tensors="np")
            out = self.model.generate(**inputs, do_sample=False, max_new_tokens=4)
            new = self.tokenizer.decode(out[0][inputs.input_ids.shape[1]:])
            if new.strip().lower().startswith(label):
                positive.append({"prompt": prompt, "ans": label})
        return positive


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("config")
    parser.add_argument("out")
    parser.add_argument("--sizes", default="boolq=4", help="samples of each set: boolq=4,gsm8k=2")
    parser.add_argument("--own", type=int, default=3, help="samples of this script's own set")
    args = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model)

    calib = CalibrationData(args.config, tokenizer=tokenizer, model=model)
    calib.add_custormized_dataset_processor("yes_or_no", YesOrNo(tokenizer, model))
    sizes = dict(item.rsplit("=", 1) for item in args.sizes.split(",") if item)
    calib.set_sample_size({**{name: int(n) for name, n in sizes.items()}, "yes_or_no": args.own})
    calib.set_shuffle_seed(1)
    mixed = calib.process()
    print(f"{len(mixed)} samples:", {n: c["delivered"] for n, c in calib.handlers.items()})

    anti = AntiOutlierConfig(anti_method="m3")
    AntiOutlier(model, get_anti_dataset(tokenizer, mixed), anti).process()
    config = QuantConfig(mm_tensor=False, disable_names=["*.mlp.down_proj"]).fa_quant(fa_amp=0)
    calibrator = Calibrator(model, config, get_calib_dataset(tokenizer, mixed), disable_level="L5")
    calibrator.run()
    calibrator.save(args.out, save_type=["safe_tensor"])
    counts = calibrator.result
    print(f"{counts['linears_quantized']} of {counts['linears']} linear layers are in 8 bits now, "
          f"in {args.out}")


if __name__ == "__main__":
    main()
