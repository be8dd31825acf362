//! What the store needs of a database: statements of an SQL that SQLite and Postgres both understand.

use super::StoreError;
use protocol::JobId;
use std::fmt::{Debug, Display};

/// Counts the changes of the tables: a database with a higher number was made by a later release.
pub(super) const SCHEMA: i64 = 3;

/// When what was written is on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Durable {
    /// When the call returns.
    Now,
    /// With the next that is.
    Later,
}

/// A value that a statement is given.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Integer(i64),
    Text(String),
    MaybeText(Option<String>),
    Bytes(Vec<u8>),
    MaybeBytes(Option<Vec<u8>>),
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Integer(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}

impl From<Vec<u8>> for Value {
    fn from(value: Vec<u8>) -> Self {
        Self::Bytes(value)
    }
}

/// What is to be done or read. Its values are `$1`, `$2` and so on, first named in this order: SQLite counts them so.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Statement {
    pub(super) sql: String,
    pub(super) values: Vec<Value>,
}

impl Statement {
    pub(super) fn new(sql: &str, values: impl Into<Vec<Value>>) -> Self {
        Self { sql: sql.to_owned(), values: values.into() }
    }
}

/// A database with the store's tables.
pub(super) trait Database: Debug {
    /// What people call it. Says no password.
    fn place(&self) -> &str;

    /// Whether what is in it outlives this process.
    fn is_kept(&self) -> bool;

    /// One change, whole or not at all. Says of each statement how many rows it changed, or what it returned of the
    /// last, if it returns something.
    ///
    /// # Errors
    /// If it was not made; or, [`StoreError::Unanswered`], if that is not known.
    fn change(
        &mut self,
        durable: Durable,
        what: &dyn Display,
        statements: Vec<Statement>,
    ) -> Result<Vec<i64>, StoreError>;

    /// The rows of a statement that changes nothing.
    ///
    /// # Errors
    /// If it cannot be read.
    fn select(&self, what: &dyn Display, statement: Statement) -> Result<Vec<Row>, StoreError>;
}

/// A value of a row.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Cell {
    Null,
    Integer(i64),
    Text(String),
    Bytes(Vec<u8>),
}

/// A row of an answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Row(pub(super) Vec<(String, Cell)>);

/// A column that is not what the tables say.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a row has no such value for {0}")]
pub(super) struct Misread(pub(super) &'static str);

impl Row {
    /// A column's value, which is taken out of the row.
    ///
    /// # Errors
    /// If there is none, or it is of another type.
    pub(super) fn take<T: Taken>(&mut self, column: &'static str) -> Result<T, Misread> {
        let cell = self.0.iter_mut().find(|(name, _)| name == column);
        let cell = cell.map(|(_, cell)| std::mem::replace(cell, Cell::Null));
        cell.and_then(T::of).ok_or(Misread(column))
    }

    /// The number of the row's job.
    pub(super) fn job(&mut self) -> Result<JobId, Misread> {
        self.take::<i64>("id").map(|id| JobId(id.cast_unsigned()))
    }
}

/// What a cell can be taken as.
pub(super) trait Taken: Sized {
    fn of(cell: Cell) -> Option<Self>;
}

impl Taken for i64 {
    fn of(cell: Cell) -> Option<Self> {
        if let Cell::Integer(value) = cell { Some(value) } else { None }
    }
}

/// A number that may have been too high for the tables' 64 bits with a sign.
impl Taken for u64 {
    fn of(cell: Cell) -> Option<Self> {
        i64::of(cell).map(|value| Self::try_from(value).unwrap_or(0))
    }
}

impl Taken for u32 {
    fn of(cell: Cell) -> Option<Self> {
        i64::of(cell).and_then(|value| Self::try_from(value).ok())
    }
}

impl Taken for u16 {
    fn of(cell: Cell) -> Option<Self> {
        i64::of(cell).and_then(|value| Self::try_from(value).ok())
    }
}

impl Taken for String {
    fn of(cell: Cell) -> Option<Self> {
        if let Cell::Text(value) = cell { Some(value) } else { None }
    }
}

impl Taken for Vec<u8> {
    fn of(cell: Cell) -> Option<Self> {
        if let Cell::Bytes(value) = cell { Some(value) } else { None }
    }
}

impl<T: Taken> Taken for Option<T> {
    fn of(cell: Cell) -> Option<Self> {
        if cell == Cell::Null { Some(None) } else { T::of(cell).map(Some) }
    }
}
