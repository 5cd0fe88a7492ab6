"""flan_tune: instruction tuning with Flan mixtures and UL2R, for PyTorch and Hugging Face.

Importing this package loads nothing else; each room is imported where it is used. See docs/data_flow.md.
"""

__version__ = "0.1.0"
