//! What `top` and the web page show, computed from the daemon's answers: rates and shares (`sample`), and services with their versions and
//! backends (`board`). `answers` asks the daemon; everything else is values. No terminal and no HTML here.

pub(super) mod answers;
pub(super) mod board;
#[cfg(test)]
pub(super) mod fixture;
pub(super) mod sample;
pub(super) mod waits;
