"""Phase 3: top-1 and top-5 at the resolution of the test."""
