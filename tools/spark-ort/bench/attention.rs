//! `spark-ort bench attention`: one layer with SparkAttention and SparkPrune, compared with GroupQueryAttention.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use serde::Serialize;
use spark_ort::runtime::load;

use super::cache::{Cache, Heads};
use super::lab::Lab;
use super::machine::Machine;
use super::rounds::Budget;
use super::shape::Shape;
use super::{append, at_least, decoding, head_dim, needs, positive, prefill, threads};
use crate::eval::setting::Setting;
use crate::report::publish;
use crate::whole_file;

/// Measure one attention layer beside ONNX Runtime's GroupQueryAttention with float32, float16, int8 and int4 caches
///
/// Runs one-layer models with random inputs alternately in this process, and shows medians. Each call finds nothing in
/// the processor's caches, as in a model of many layers. Past and present are one buffer, bound before. Needs no model.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  One decoded token at several contexts, with one thread and with two; about three minutes:
    spark-ort bench attention

  A short look:
    spark-ort bench attention --contexts 4096 --threads 1 --seconds 5

  Drafts of a few tokens, verified in one call:
    spark-ort bench attention --contexts 16384 --threads 1 --new 1,2,4,8

  The first prompt: time, memory, SparkPrune's share:
    spark-ort bench attention --prefill 512,2048 --threads 2

  What SparkPrune takes to add a token:
    spark-ort bench attention --append --contexts 1024,4096,16384,65536

  Keys in a basis beside pruned ones:
    spark-ort bench attention --contexts 16384 --threads 1 --settings 0.5/8/8,basis64/8,0.7/4/4,basis48/4

  Another model's layer, every sample kept:
    spark-ort bench attention --heads 24/8 --head-dim 64 --settings 0.7/8/8,0.7/4/4 --json layer.json")]
pub struct Args {
    /// Tokens in the cache, the new one included
    #[arg(
        long,
        value_name = "N,...",
        value_delimiter = ',',
        value_parser = context,
        default_value = "4096,16384,65536"
    )]
    contexts: Vec<usize>,

    /// New tokens of a call: several where a draft of them is verified
    #[arg(long, value_name = "N,...", value_delimiter = ',', value_parser = positive, default_value = "1")]
    new: Vec<usize>,

    /// Query and KV heads
    #[arg(long, value_name = "Q/KV", default_value = "32/8")]
    heads: Heads,

    /// Channels of a head
    #[arg(long, value_name = "N", default_value = "128", value_parser = head_dim)]
    head_dim: usize,

    /// Sequences in a call
    #[arg(long, value_name = "N", default_value = "1", value_parser = positive)]
    batch: usize,

    /// Threads that compute, also those that read memory to say how fast it is
    #[arg(long, value_name = "N,...", value_delimiter = ',', value_parser = threads, default_value = "1,2")]
    threads: Vec<usize>,

    /// SparK's caches: share of pruned key channels, bits of the others, bits of values, and, after a plus sign, keys
    /// kept dense in free rows; :v2 for row format 2; or basis and bytes of a key, bits of values: keys in a basis,
    /// here a random one
    #[arg(
        long,
        value_name = "RATIO/BITS/BITS[+RECENT][:v2]|basisBYTES/BITS[+RECENT],...",
        value_delimiter = ',',
        default_value = "0.5/16/16,0.5/8/8,0.7/4/4"
    )]
    settings: Vec<Setting>,

    /// Measure first prompts of so many tokens, in place of decoding
    #[arg(long, value_name = "N,...", value_delimiter = ',', value_parser = positive)]
    prefill: Vec<usize>,

    /// Measure SparkPrune alone with one new token, in a shared buffer and in a growing cache, in place of decoding
    #[arg(long)]
    append: bool,

    /// How often everything is run
    #[arg(long, value_name = "N", default_value = "31", value_parser = positive)]
    rounds: usize,

    /// Start no further round at a context after so many seconds; three are run in any case, or one of prompts
    #[arg(long, value_name = "S", default_value = "20")]
    seconds: f64,

    /// Also write all figures as JSON to a file, or to stdout (-) in place of the table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// A context has at least one past token and one new token.
fn context(text: &str) -> Result<usize, String> {
    at_least(2, text)
}

impl Args {
    /// Checks sizes and memory of all that is measured.
    fn check_needs(&self, shape: &Shape, own: &[Cache]) -> Result<()> {
        needs::check_shape(shape, own)?;
        self.prefill.iter().try_for_each(|&length| needs::check_prefill(shape, own, length))?;
        if self.append {
            return self.contexts.iter().try_for_each(|&context| needs::check_append(shape, own, context));
        }
        if self.prefill.is_empty() {
            decoding::check(&self.contexts, &self.new)?;
            let new = self.new.iter().copied().max().unwrap_or(1);
            self.contexts.iter().try_for_each(|&context| needs::check_decoding(shape, own, context, new))?;
        }
        Ok(())
    }
}

#[derive(Serialize)]
struct Report<'a> {
    machine: Machine,
    layer: Shape,
    decode: Vec<decoding::Cell>,
    prefill: Vec<prefill::Cell>,
    append: Vec<append::Cell>,
    /// Baselines that this ONNX Runtime does not have.
    unavailable: &'a std::collections::BTreeMap<String, String>,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    if !args.seconds.is_finite() {
        bail!("--seconds must be a number");
    }
    let shape = Shape { heads: args.heads, head_dim: args.head_dim, batch: args.batch };
    args.json.as_deref().map_or(Ok(()), |json| whole_file::check("--json", json, &[]))?;
    let own = args.settings.iter().map(|setting| Cache::spark(setting.clone(), shape.head_dim));
    let own: Vec<Cache> = own.collect::<Result<_>>()?;
    args.check_needs(&shape, &own)?;
    let budget = Budget { rounds: args.rounds, seconds: args.seconds, least: 3 };
    let runtime = load()?;
    let mut lab = Lab::new(runtime, shape, &args.threads, own, budget);
    let machine = Machine::new(runtime);
    let Heads { query, kv } = shape.heads;
    let mut text = machine.line();
    text += &format!("\n{query} query and {kv} KV heads of {} channels, batch {}\n", shape.head_dim, shape.batch);
    let (mut decode, mut prefill, mut append) = (Vec::new(), Vec::new(), Vec::new());
    if !args.prefill.is_empty() {
        lab.budget.least = 1;
        prefill = prefill::measure(&mut lab, &args.prefill)?;
        text += &format!("\n{}", prefill::table(&prefill));
        lab.budget = budget;
    }
    if args.append {
        append = append::measure(&lab, &args.contexts)?;
        text += &format!("\n{}", append::table(&append));
    }
    if args.prefill.is_empty() && !args.append {
        decode = decoding::measure(&mut lab, &args.contexts, &args.new)?;
        text += &format!("\n{}", decoding::table(&decode));
    }
    for (peer, reason) in &lab.unavailable {
        text += &format!("{peer} is not measured: {reason}\n");
    }
    let report = Report { machine, layer: shape, decode, prefill, append, unavailable: &lab.unavailable };
    publish(args.json.as_deref(), &report, || text)?;
    Ok(ExitCode::SUCCESS)
}
