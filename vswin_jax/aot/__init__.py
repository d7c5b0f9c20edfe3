"""Ahead-of-time compilation of a training step for accelerators that you don't have.

Memory, operations and collectives are the compiler's; times are estimates from published peaks.
Call `devices.prepare_environment` before any computation, then `compile.compile_config`.
"""
