"""Data sets: train and validation splits for the search, test splits for the final rerank."""

from normact.search.data.base import Data, Split, Splits, TensorData
from normact.search.data.digits import Digits
from normact.search.data.fashion_mnist import FashionMnist
from normact.search.data.functions import FUNCTIONS, FunctionData

__all__ = ["FUNCTIONS", "Data", "Digits", "FashionMnist", "FunctionData", "Split", "Splits", "TensorData"]
