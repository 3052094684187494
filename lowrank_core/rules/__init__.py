"""The rules by which one matrix is stepped, DCT-AdamW and Trion, and the state they keep."""
