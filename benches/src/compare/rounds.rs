//! The rounds: children one after the other, each round in another order.

use std::error::Error;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::cells::Cell;
use crate::child::Ask;
use crate::meter::Scale;
use crate::random::Random;
use crate::workload::Family;

/// What the children answered: for each workload, for each cell, for each round.
pub(super) type Measured = Vec<((&'static str, Family), Vec<Vec<Value>>)>;

/// Runs all of it.
pub(super) fn run(
    cells: &[Cell],
    workloads: &[(&'static str, Family)],
    scale: Scale,
    rounds: usize,
) -> Result<Measured, Box<dyn Error>> {
    let mut measured: Measured =
        workloads.iter().map(|workload| (*workload, vec![Vec::new(); cells.len()])).collect();
    let mut random = Random::new(1);
    for round in 0..rounds {
        for ((name, family), answers) in &mut measured {
            eprint!("\rround {} of {rounds}: {name:<20}", round + 1);
            let mut order: Vec<usize> = (0..cells.len()).collect();
            order.retain(|cell| cells[*cell].runs(name));
            random.shuffle(&mut order);
            if *family == Family::Memory {
                // Bytes are the same in each round, and nobody's time counts.
                if round == 0 {
                    together(cells, &order, name, scale, answers)?;
                }
                continue;
            }
            for cell in order {
                let child = start(&cells[cell], name, scale)?;
                answers[cell].push(finish(&cells[cell], name, child)?);
            }
        }
    }
    eprintln!("\r{:40}\r", "");
    Ok(measured)
}

/// Most of what a memory workload does is to wait: all cells at once.
fn together(
    cells: &[Cell],
    order: &[usize],
    name: &str,
    scale: Scale,
    answers: &mut [Vec<Value>],
) -> Result<(), Box<dyn Error>> {
    let mut children = Vec::new();
    for &cell in order {
        children.push((cell, start(&cells[cell], name, scale)?));
    }
    for (cell, child) in children {
        answers[cell].push(finish(&cells[cell], name, child)?);
    }
    Ok(())
}

fn start(cell: &Cell, name: &str, scale: Scale) -> Result<std::process::Child, Box<dyn Error>> {
    let ask = Ask {
        workload: name.to_owned(),
        scale,
        state: cell.state.clone(),
        turns: None,
        threads: None,
    };
    let child = Command::new(&cell.binary)
        .args(ask.arguments())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{}: {error}", cell.binary.display()))?;
    Ok(child)
}

fn finish(cell: &Cell, name: &str, child: std::process::Child) -> Result<Value, Box<dyn Error>> {
    let output = child.wait_with_output()?;
    if !output.status.success() {
        return Err(format!("{name} on {}: {}", cell.name, output.status).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}
