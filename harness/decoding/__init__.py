"""The decoding loop (propose, verify, accept, commit, observe) with its acceptors, sampling and batches."""
