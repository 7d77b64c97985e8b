"""Which names the real torch_npu has, and which of them this repository uses, without importing either.

names.py reads the Python sources inside a wheel; names-<version>.json is what it read (`python -m torch_npu_api`, run in
ci/, writes them anew); usage.py reads this repository. ci/test_npu_sim_names.py puts them together.
"""
