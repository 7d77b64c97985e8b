"""The stages of a certificate (tools/certify.py): each module has `run(case)`, which yields checks as it finds them."""
