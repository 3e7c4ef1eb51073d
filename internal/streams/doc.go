// Package streams owns how bytes travel over a stream of messages, as transfers
// have it: the reader grants a window, the writer sends data and never more than
// was granted. It does not know how messages travel, nor what the bytes are.
//
// Neither side has goroutines or buffers of its own beyond one message. What is
// blocked in a stream ends when the stream does, which is the business of whoever
// opened it.
package streams
