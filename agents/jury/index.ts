// Puts one question to three models and says how far they agree. Needs infer.
//
// Input: the question on the first line; up to three model ids on the second, else the demo model thrice.

import { Host, LogLevel } from "@extism/as-pdk";
import { fail, give, infer, number, quoted, text } from "../quelea";

export function run(): i32 {
  const lines = Host.inputString().trim().split("\n");
  const question = lines[0].trim();
  if (question.length == 0) return fail("give me a question");
  const models = lines.length > 1 ? lines[1].trim().split(" ") : ["demo", "demo", "demo"];
  const answers: string[] = [];
  let spent: i64 = 0;
  let document = "";
  for (let i = 0; i < models.length && i < 3; i++) {
    const asked = infer(question, models[i], 64);
    const error = asked.error;
    const said = text(asked.json, "text");
    document += (i > 0 ? "," : "") + '{"model":' + quoted(models[i]);
    if (error !== null || said === null) {
      document += ',"error":' + quoted(error === null ? "no answer" : error) + "}";
      Host.log(LogLevel.Warn, models[i] + " gives no answer");
      continue;
    }
    spent += number(asked.json, "spent");
    answers.push(said);
    document += ',"answer":' + quoted(said.trim()) + "}";
  }
  if (answers.length == 0) return fail("no model answers");
  return give('{"question":' + quoted(question) + ',"answers":[' + document + '],"agreement":' + agreement(answers).toString()
    + ',"spent":' + spent.toString() + "}\n");
}

/** The mean, over all pairs, of the share of words that both have, in percent. */
function agreement(answers: string[]): i32 {
  if (answers.length < 2) return 100;
  let sum = 0, pairs = 0;
  for (let i = 0; i < answers.length; i++) {
    for (let j = i + 1; j < answers.length; j++) {
      sum += shared(words(answers[i]), words(answers[j]));
      pairs++;
    }
  }
  return sum / pairs;
}

/** The different words of a text, in small letters. */
function words(text: string): string[] {
  const found: string[] = [];
  let word = "";
  for (let i = 0; i <= text.length; i++) {
    const c = i < text.length ? text.charCodeAt(i) : 0;
    const letter = (c >= 48 && c <= 57) || (c >= 65 && c <= 90) || (c >= 97 && c <= 122) || c >= 192;
    if (letter) {
      word += String.fromCharCode(c).toLowerCase();
    } else if (word.length > 0) {
      if (!found.includes(word)) found.push(word);
      word = "";
    }
  }
  return found;
}

function shared(a: string[], b: string[]): i32 {
  let both = 0;
  for (let i = 0; i < a.length; i++) if (b.includes(a[i])) both++;
  const all = a.length + b.length - both;
  return all == 0 ? 100 : both * 100 / all;
}
