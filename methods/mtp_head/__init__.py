"""Native multi-token-prediction heads: one more block of the target's own class drafts the next tokens."""

from methods.mtp_head.drafter import MtpHead

__all__ = ["MtpHead"]
