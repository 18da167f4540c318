//! `serde_json` reads a document of 100 records into values, changes it and writes it.

use std::fmt::Write;
use std::hint::black_box;

use serde_json::Value;

use super::{Cx, Family, Workload};
use crate::block::Allocator;
use crate::meter::Meter;
use crate::random::Random;
use crate::tenants::{Tenants, Turn};

pub(super) fn list<A: Allocator, T: Tenants>(all: &mut Vec<Workload<A, T>>) {
    all.push(Workload::new(Family::Application, "json", json));
}

fn document() -> String {
    let mut random = Random::new(53);
    let mut text = String::from("[");
    for id in 0..100 {
        let comma = if id == 0 { "" } else { "," };
        write!(
            text,
            r#"{comma}{{"id":{id},"name":"user {}","tags":["a{}","b{}"],"at":{{"x":{},"y":"{}"}},"ok":true}}"#,
            random.any(),
            random.below(10),
            random.below(1000),
            random.below(1_000_000),
            "z".repeat(random.below(100)),
        )
        .expect("a string takes all");
    }
    text + "]"
}

fn json<A: Allocator, T: Tenants>(cx: Cx<A, T>, meter: &mut Meter) {
    let times = cx.scale.some(20);
    let document = document();
    meter.run(|| {
        let mut turn = cx.tenants.turn();
        for _ in 0..times {
            let mut value: Value = serde_json::from_str(black_box(&document)).expect("it is JSON");
            value[0]["id"] = Value::from("changed");
            black_box(value.to_string());
            turn.tick();
        }
        times
    });
}
