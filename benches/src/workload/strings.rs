//! Text as programs handle it: format, split, collect, join, sort.

use std::hint::black_box;

use super::{Cx, Family, Workload};
use crate::block::Allocator;
use crate::meter::Meter;
use crate::random::Random;
use crate::tenants::{Tenants, Turn};

pub(super) fn list<A: Allocator, T: Tenants>(all: &mut Vec<Workload<A, T>>) {
    all.push(Workload::new(Family::Application, "strings", strings));
}

fn strings<A: Allocator, T: Tenants>(cx: Cx<A, T>, meter: &mut Meter) {
    let times = cx.scale.some(500);
    let mut random = Random::new(47);
    meter.run(|| {
        let mut turn = cx.tenants.turn();
        for _ in 0..times {
            let line: Vec<String> =
                (0..20).map(|field| format!("field-{field}={}", random.any())).collect();
            let line = line.join(";");
            let mut values: Vec<String> = line
                .split(';')
                .filter_map(|field| field.split('=').nth(1))
                .map(str::to_owned)
                .collect();
            values.sort_unstable();
            black_box(values.concat().to_uppercase());
            turn.tick();
        }
        times
    });
}
