"""Published networks over bags in the calling convention of ACMIL, for comparison on equal terms.

Every one takes an `ACMILConfig`, uses of it what it has a use for, and maps packed patches and
`cu_seqlens` to a `MILOutput`. `losses(output, label, ...)` names the terms of its training loss.
"""
