"""DatasetProcessorBase: a data set of one's own for CalibrationData."""
from abc import ABC, abstractmethod


class DatasetProcessorBase(ABC):
    """Subclasses fill `ori_prompts` (or override get_dataset_size()) and say what a sample is."""

    def __init__(self, dataset_path, tokenizer=None, model=None):
        self.dataset_path, self.tokenizer, self.model = dataset_path, tokenizer, model
        self.ori_prompts, self.ori_answers = [], []

    @abstractmethod
    def process_data(self, indexs):
        """A list of {"prompt": text, "ans": any JSON value} for these indices; further keys are
        kept."""

    @abstractmethod
    def verify_positive_prompt(self, prompts, labels):
        """Those of the samples, in the same form, that self.model answers right. Called if and only
        if the CalibrationData has a model."""

    def get_dataset_size(self):
        """How many samples there are."""
        return len(self.ori_prompts)
