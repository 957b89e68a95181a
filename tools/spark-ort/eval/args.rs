//! Options of `spark-ort eval`.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::ValueEnum;
use spark_ort::eval::Task;
use spark_ort::eval::rivals::Rival;
use spark_ort::runtime::Interface;

use super::setting::Setting;
use crate::counts::tokens;
use crate::temporary::Temporary;
use crate::{room, whole_file};

/// Measure what a compressed cache costs a model: loss, KL divergence, agreement, bytes and speed
///
/// Each model reads prompts of a text and then the tokens that really follow, one by one, as in production; its
/// predictions are compared with the original's, whose cache is complete. Intervals are of 95 % confidence, by a
/// bootstrap over blocks of 16 tokens. Speed is that of this machine while it measures. Ctrl-C ends it and still shows
/// what there is.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  Three settings, tried on a model that stays as it is:
    spark-ort eval llama/ --settings 0.5/8/8,0.7/4/4,0.7/4/4+64 --text novel.txt

  A model that was rewritten before, as ONNX Runtime GenAI runs it, prompts in chunks of 512 tokens:
    spark-ort eval llama/ llama-spark/ --text novel.txt --shared-buffer --chunk 512

  The default beside everything else that makes caches smaller:
    spark-ort eval llama/ --settings 0.5/8/8+64 --rivals all --text novel.txt --shared-buffer

  LongBench, with its own wording:
    spark-ort eval llama/ --settings 0.5/8/8,0.8/8/8 --tasks qasper.jsonl,trec.jsonl --contexts 3500 \\
        --task-prompts dataset2prompt.json --task-lengths dataset2maxlen.json --samples 200")]
pub struct Args {
    /// The model with a complete cache: an .onnx file, an ONNX Runtime GenAI folder, or a folder with one .onnx file
    pub(super) original: PathBuf,

    /// Rewritten models to compare with it
    pub(super) rewritten: Vec<PathBuf>,

    /// Settings to rewrite the original with for this measurement: share of pruned key channels, bits of keys and of
    /// values, and how many recent keys stay dense: in free rows of a shared buffer, else as inputs; :v2 for row format
    /// 2, and :none, :exponential or :normal for another recovery than the mean; or basis and bytes of a key in a
    /// calibrated basis, bits of values
    #[arg(
        long,
        value_name = "RATIO/BITS/BITS[+RECENT][:v2][:RECOVERY]|basisBYTES/BITS[+RECENT],...",
        value_delimiter = ','
    )]
    pub(super) settings: Vec<Setting>,

    /// Other ways to make the cache smaller, on the original: int8, int4, hadamard4, hadamard3, oscar4, oscar3,
    /// oscar2, think0.5, snapkv0.5 (simulated), ort-int8, ort-int4 (ONNX Runtime's own), or all; also prune0.5, the
    /// smallest half of each row's channels dropped, and basis36, rows of 36 bytes in a basis of the prompt's own;
    /// -keys or -values compresses these alone; +N keeps N recent tokens dense
    #[arg(long, value_name = "NAME[+RECENT],...|all", value_delimiter = ',')]
    pub(super) rivals: Vec<Rivals>,

    /// The text to read; not needed where all tasks are files
    #[arg(long, value_name = "FILE", required_unless_present = "tasks")]
    pub(super) text: Option<PathBuf>,

    /// Lengths of the prompts in tokens
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_values_t = [2048], value_parser = tokens)]
    pub(super) contexts: Vec<usize>,

    /// Tokens to decode after each prompt
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = tokens)]
    pub(super) decode: usize,

    /// Passages of the text for each length, as far as it has so many that do not overlap
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub(super) passages: usize,

    /// Tasks whose answers lie in the prompt, and how many are answered: needle, multi-needle, key-value or variables,
    /// made of the text; or a file of LongBench's questions, one JSON object a line, which are answered in free text
    /// and scored by LongBench's metric of their data set. Prompts longer than the longest of --contexts lose their
    /// middle
    #[arg(long, value_name = "TASK|FILE.jsonl,...", value_delimiter = ',')]
    pub(super) tasks: Vec<Asked>,

    /// How questions are worded, by data set, with {context} and {input}: LongBench's dataset2prompt.json [default:
    /// "{context}\n\nQuestion: {input}\nAnswer:"]
    #[arg(long, value_name = "FILE.json", verbatim_doc_comment)]
    pub(super) task_prompts: Option<PathBuf>,

    /// Tokens of an answer at most, by data set: LongBench's dataset2maxlen.json [default: 64]
    #[arg(long, value_name = "FILE.json")]
    pub(super) task_lengths: Option<PathBuf>,

    /// What a model made for conversations is asked in tasks, with {prompt} and \n for a new line, such as
    /// "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    #[arg(long, value_name = "TEXT", default_value = PLAIN_TEMPLATE, verbatim_doc_comment)]
    pub(super) template: String,

    /// Prompts of each task and length; questions of each data set at most
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub(super) samples: usize,

    /// Keep past and present in one buffer of fixed size, as ONNX Runtime GenAI does, where a model allows it
    #[arg(long)]
    pub(super) shared_buffer: bool,

    /// Tokens that such a buffer has room for [default: 512 more than are needed, within the model's context]
    #[arg(long, value_name = "N", requires = "shared_buffer", value_parser = tokens)]
    pub(super) capacity: Option<usize>,

    /// Read prompts in chunks of N tokens
    #[arg(long, value_name = "N", value_parser = tokens)]
    pub(super) chunk: Option<usize>,

    #[command(flatten)]
    pub(super) temporary: Temporary,

    /// Also draw error against pruned channels, error against bytes and speed against bytes, as an SVG or PNG file
    #[arg(long, value_name = "FILE.svg|FILE.png")]
    pub(super) plot: Option<PathBuf>,

    /// Also write what is shown as JSON to a file, or to stdout (-) in place of the table
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
}

/// The template of a model that is not made for conversations.
const PLAIN_TEMPLATE: &str = "{prompt}";

/// A task of `--tasks`.
#[derive(Clone)]
pub(super) enum Asked {
    Generated(Task),
    /// A file of questions.
    File(PathBuf),
}

impl std::str::FromStr for Asked {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_file = text.ends_with(".jsonl") || text.contains('/');
        match Task::from_str(text, false) {
            _ if is_file => Ok(Self::File(text.into())),
            Ok(task) => Ok(Self::Generated(task)),
            Err(_) => {
                let names: Vec<String> = Task::value_variants().iter().map(Task::to_string).collect();
                Err(format!("neither {} nor a file that ends in .jsonl", names.join(", ")))
            }
        }
    }
}

/// One rival, or all.
#[derive(Clone)]
pub(super) struct Rivals(pub(super) Vec<Rival>);

impl std::str::FromStr for Rivals {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(Self(if text == "all" { Rival::all() } else { vec![text.parse()?] }))
    }
}

impl Args {
    /// The tasks that are generated from a text.
    pub(super) fn generated(&self) -> impl Iterator<Item = Task> {
        self.tasks.iter().filter_map(|task| match task {
            Asked::Generated(task) => Some(*task),
            Asked::File(_) => None,
        })
    }

    /// The files of questions.
    pub(super) fn question_files(&self) -> impl Iterator<Item = &Path> {
        self.tasks.iter().filter_map(|task| match task {
            Asked::File(path) => Some(path.as_path()),
            Asked::Generated(_) => None,
        })
    }

    /// The template of --template, with its new lines.
    pub(super) fn template(&self) -> String {
        self.template.replace("\\n", "\n")
    }

    /// Checks that nothing is written where something is read, as the files of the models are.
    pub(super) fn check_places(&self, mut read: Vec<PathBuf>) -> Result<()> {
        read.extend([&self.text, &self.task_prompts, &self.task_lengths].into_iter().flatten().cloned());
        read.extend(self.question_files().map(Path::to_path_buf));
        read.extend(self.temporary.files());
        whole_file::check_all([("--plot", self.plot.as_deref()), ("--json", self.json.as_deref())], read)
    }

    /// Checks that there is memory for a buffer of --capacity tokens of each model that may have one.
    pub(super) fn check_room<'a>(&self, mut models: impl Iterator<Item = &'a Interface>) -> Result<()> {
        let Some(capacity) = self.capacity else { return Ok(()) };
        models.try_for_each(|model| match model.shares_buffer {
            true => room::check_cache(&format!("--capacity {capacity}"), model, capacity),
            false => Ok(()),
        })
    }

    /// Checks what the types of the options cannot express.
    pub(super) fn check(&self) -> Result<()> {
        if !self.template.contains("{prompt}") {
            bail!("--template '{}' has no {{prompt}} in it", self.template);
        }
        if self.template != PLAIN_TEMPLATE && self.tasks.is_empty() {
            bail!("--template is for tasks, and --tasks names none");
        }
        let at_least_one = [
            ("--threads", self.temporary.threads),
            ("--chunk", self.chunk),
            ("--decode", Some(self.decode)),
            ("--passages", Some(self.passages)),
            ("--samples", Some(self.samples)),
            ("--contexts", self.contexts.iter().min().copied()),
        ];
        if let Some((option, _)) = at_least_one.into_iter().find(|(_, value)| *value == Some(0)) {
            bail!("{option} is 0: at least 1 is needed");
        }
        let needs = [
            ("--tasks", self.generated().map(|task| task.to_string()).next()),
            ("--plot", self.plot.as_ref().map(|path| path.display().to_string())),
            ("--rivals", self.rivals.first().map(|_| "of any name".to_string())),
        ];
        for (option, name) in needs.into_iter().filter_map(|(option, name)| Some((option, name?))) {
            if self.text.is_none() {
                bail!("{option} {name} needs a text: --text names one");
            }
        }
        Ok(())
    }
}

/// What is named twice is measured once.
pub(super) fn once<T: ToString>(named: impl Iterator<Item = T>) -> Vec<T> {
    let mut names = HashSet::new();
    named.filter(|item| names.insert(item.to_string())).collect()
}
