"""What the tests of deploy/ need: kustomizations, schemas and environments as the operators have them, and machines that are none."""
