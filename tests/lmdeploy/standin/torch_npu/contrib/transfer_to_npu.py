"""The real one makes "cuda" mean "npu" all over torch. There is nothing to transfer to here."""
