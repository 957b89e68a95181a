//! Removing nodes and all that only fed them, and sorting nodes.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::index::reads;
use super::proto::GraphProto;

/// Removes the nodes at `doomed`, every node that then has no readers left, and the initializers and value_infos of
/// tensors that only these had. Nodes that had no readers before stay.
pub fn remove_nodes(graph: &mut GraphProto, doomed: &[usize]) {
    let (gone, dead) = {
        let outputs: HashSet<&str> = graph.output.iter().map(|o| o.name()).collect();
        let mut producer = HashMap::new();
        let mut readers: HashMap<&str, usize> = HashMap::new();
        for (n, node) in graph.node.iter().enumerate() {
            producer.extend(node.output.iter().map(|o| (o.as_str(), n)));
            reads(node).into_iter().for_each(|r| *readers.entry(r).or_default() += 1);
        }
        let mut gone: BTreeSet<usize> = doomed.iter().copied().collect();
        let mut queue: Vec<usize> = doomed.to_vec();
        let mut dead: HashSet<String> = HashSet::new();
        while let Some(n) = queue.pop() {
            dead.extend(graph.node[n].output.iter().filter(|o| !outputs.contains(o.as_str())).cloned());
            for name in reads(&graph.node[n]) {
                let left = readers.get_mut(name).expect("counted above");
                *left -= 1;
                if *left > 0 || outputs.contains(name) {
                    continue;
                }
                let Some(&p) = producer.get(name) else {
                    dead.insert(name.to_string());
                    continue;
                };
                let unread = |o: &String| readers.get(o.as_str()).is_none_or(|&n| n == 0);
                let unused = graph.node[p].output.iter().all(|o| unread(o) && !outputs.contains(o.as_str()));
                if unused && gone.insert(p) {
                    queue.push(p);
                }
            }
        }
        (gone, dead)
    };
    let mut n = 0;
    graph.node.retain(|_| {
        n += 1;
        !gone.contains(&(n - 1))
    });
    // Outputs of a doomed node may have new producers.
    let made: HashSet<String> = graph.node.iter().flat_map(|n| n.output.iter().cloned()).collect();
    let inputs: HashSet<String> = graph.input.iter().map(|i| i.name().to_string()).collect();
    let dead = |name: &str| dead.contains(name) && !made.contains(name) && !inputs.contains(name);
    graph.initializer.retain(|i| !dead(i.name()));
    graph.sparse_initializer.retain(|i| !dead(i.values.name()));
    graph.value_info.retain(|v| !dead(v.name()));
    graph.quantization_annotation.retain(|a| !dead(a.tensor_name()));
}

/// Sorts the nodes so that each reads only what is made before it, moving no node further than needed.
///
/// # Errors
/// The name of a tensor in a cycle of nodes.
pub fn sort_nodes(graph: &mut GraphProto) -> Result<(), String> {
    let count = graph.node.len();
    let order = {
        let producer: HashMap<&str, usize> = graph
            .node
            .iter()
            .enumerate()
            .flat_map(|(n, node)| node.output.iter().map(move |o| (o.as_str(), n)))
            .collect();
        let mut waits = vec![0usize; count];
        let mut feeds = vec![Vec::new(); count];
        for (n, node) in graph.node.iter().enumerate() {
            let needs: HashSet<usize> = reads(node).into_iter().filter_map(|r| producer.get(r).copied()).collect();
            waits[n] = needs.len();
            needs.into_iter().for_each(|p| feeds[p].push(n));
        }
        let mut ready: BTreeSet<usize> = (0..count).filter(|&n| waits[n] == 0).collect();
        let mut order = Vec::with_capacity(count);
        while let Some(n) = ready.pop_first() {
            order.push(n);
            for &reader in &feeds[n] {
                waits[reader] -= 1;
                if waits[reader] == 0 {
                    ready.insert(reader);
                }
            }
        }
        if let Some(stuck) = (0..count).find(|&n| waits[n] > 0) {
            return Err(graph.node[stuck].output.first().cloned().unwrap_or_default());
        }
        order
    };
    let mut nodes: Vec<_> = std::mem::take(&mut graph.node).into_iter().map(Some).collect();
    graph.node = order.into_iter().map(|n| nodes[n].take().expect("every node once")).collect();
    Ok(())
}
