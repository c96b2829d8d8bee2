"""TTS: a drafter that is distilled from the verifications of the answer that it drafts."""

from methods.tts.drafter import Tts

__all__ = ["Tts"]
