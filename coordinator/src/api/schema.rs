//! Schemas of values that are protocol's, whose types know nothing of documents.

use protocol::job::{
    Bands, CfgSplit, Decode, Dtype, GnVariance, Mode, Parallelism, Priority, Scheduler, Wire,
};
use protocol::message::JobStage;
use protocol::plan::{Branch, Fabric};
use serde_json::Value;
use utoipa::openapi::schema::{Object, ObjectBuilder, SchemaType, Type};

/// One of these names; or nothing, if it may be left out.
fn one_of(names: impl Iterator<Item = &'static str>, optional: bool) -> Object {
    let nothing = optional.then_some(Value::Null);
    let values: Vec<Value> = names.map(Value::from).chain(nothing).collect();
    let kinds = [Type::String].into_iter().chain(optional.then_some(Type::Null));
    let kind = if optional { SchemaType::from_iter(kinds) } else { Type::String.into() };
    ObjectBuilder::new().schema_type(kind).enum_values(Some(values)).build()
}

macro_rules! names {
    ($($name:ident: $of:ty, $optional:expr;)+) => {
        $(
            pub(super) fn $name() -> Object {
                one_of(<$of>::ALL.iter().map(|each| each.name()), $optional)
            }
        )+
    };
}

names! {
    scheduler: Scheduler, false;
    optional_scheduler: Scheduler, true;
    parallelism: Parallelism, false;
    optional_parallelism: Parallelism, true;
    mode: Mode, false;
    optional_mode: Mode, true;
    gn_variance: GnVariance, false;
    optional_gn_variance: GnVariance, true;
    wire: Wire, false;
    optional_wire: Wire, true;
    dtype: Dtype, false;
    optional_dtype: Dtype, true;
    decode: Decode, false;
    optional_decode: Decode, true;
    priority: Priority, false;
    optional_priority: Priority, true;
    fabric: Fabric, false;
    optional_fabric: Fabric, true;
    optional_cfg_split: CfgSplit, true;
    optional_bands: Bands, true;
    stage: JobStage, false;
}

/// As serde names them.
pub(super) fn branch() -> Object {
    let all = [Branch::Whole, Branch::Negative, Branch::Prompt];
    let name = |branch| match branch {
        Branch::Whole => "whole",
        Branch::Negative => "negative",
        Branch::Prompt => "prompt",
    };
    one_of(all.into_iter().map(name), false)
}

/// Several fabrics, or nothing.
pub(super) fn fabrics() -> utoipa::openapi::schema::Array {
    let kinds = SchemaType::from_iter([Type::Array, Type::Null]);
    utoipa::openapi::schema::ArrayBuilder::new().schema_type(kinds).items(fabric()).build()
}

/// Any whole number of 64 bits, or nothing: more than what is called int64.
pub(super) fn optional_seed() -> Object {
    let kinds = SchemaType::from_iter([Type::Integer, Type::Null]);
    ObjectBuilder::new().schema_type(kinds).minimum(Some(0)).build()
}

fn warmup_of(kinds: &[Type]) -> Object {
    let kinds = SchemaType::from_iter(kinds.iter().cloned());
    let most = f64::from(u32::MAX);
    ObjectBuilder::new()
        .schema_type(kinds)
        .minimum(Some(0))
        .maximum(Some(most))
        .pattern(Some("^(auto|[0-9]{1,9})$"))
        .build()
}

/// A number of calls, or `auto`.
pub(super) fn warmup() -> Object {
    warmup_of(&[Type::Integer, Type::String])
}

/// The same, or nothing.
pub(super) fn optional_warmup() -> Object {
    warmup_of(&[Type::Integer, Type::String, Type::Null])
}
