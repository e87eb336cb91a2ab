//! Reasons as sentences: what `isthmus why` prints, from the decisions the proxies take.
