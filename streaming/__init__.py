"""The live runtime, headless: sessions, playout, encoding, recording and the wire protocol."""
