"""One resident copy of a model's weights, read at several widths: the format, the quantizer, vLLM's plugin.

`format` and `settings` need numpy alone; torch, transformers, safetensors and vLLM are imported by the modules that
work with them and by nothing else in nearfar but `training`.
"""
