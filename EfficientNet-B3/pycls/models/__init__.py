"""EfficientNet, and `effnet("B3")`, which builds one of the family by its name."""
from pycls.models.model_zoo import effnet  # noqa: F401
