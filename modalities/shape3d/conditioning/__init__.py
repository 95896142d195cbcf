"""What a flow is conditioned on, in the forms that released checkpoints were trained with."""
