//! The HTTP interface of a real coordinator.

mod access;
mod asking;
mod images;
mod page;
mod service;
