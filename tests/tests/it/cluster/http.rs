//! The HTTP interface of a real coordinator.

mod access;
mod asking;
mod files;
mod images;
mod page;
mod service;
