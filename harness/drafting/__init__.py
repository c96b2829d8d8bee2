"""The interface that a method implements: drafts, token trees and drafters."""
