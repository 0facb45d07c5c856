// What people do with the page.

import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { barriers, expect, picture, test } from './page';
import { Node } from './swarm';

test('chat answers over the swarm, and says how', async ({ open, page }) => {
  await open('chat');
  await page.getByRole('group').getByText('Parameters').click();
  await page.getByLabel('Route').selectOption('swarm');
  await page.getByLabel('Your message').fill('What is a relay?');
  await page.keyboard.press('Enter');
  const answer = page.getByRole('list', { name: 'Conversation' }).getByRole('listitem').nth(1);
  await expect(answer).toContainText('tokens/s');
  await expect(answer).toContainText('relay');
  await expect(answer).toContainText('[0..3]');
  await expect(answer).toContainText('[3..6]');
  await expect(answer).toContainText('credits');
  await answer.getByText('Route, cost and receipt').click();
  await expect(answer.getByRole('button', { name: 'Copy receipt' })).toBeVisible();
  await picture(page, 'Chat-answer');

  await answer.getByRole('button', { name: 'Again' }).click();
  await expect(page.getByRole('listitem').filter({ hasText: 'tokens/s' })).toHaveCount(1);
});

test('an answer can be stopped', async ({ open, page }) => {
  await open('chat');
  await page.getByRole('group').getByText('Parameters').click();
  await page.getByLabel('Route').selectOption('swarm');
  await page.getByLabel('Your message').fill('Who are you?');
  // Held back, so that there is something to stop.
  await page.route('**/api/v1/infer', () => {});
  await page.getByRole('button', { name: 'Send' }).click();
  await page.getByRole('button', { name: 'Stop' }).click();
  await expect(page.getByText('stopped')).toBeVisible();
  await page.unroute('**/api/v1/infer');
});

test('hostile words stay words', async ({ open, page }) => {
  await open('chat');
  const hostile = 'a <img src=x onerror="window.hacked=1"><script>window.hacked=1</script> [b](javascript:window.hacked=1) <b onclick="window.hacked=1">c</b>';
  const events = [
    { type: 'route', model: 'm', hops: [{ peer: '"><img src=x onerror=window.hacked=1>', layers: '0..6', rtt_ms: 1 }] },
    { type: 'text', text: hostile, id: 1 },
    { type: 'done', summary: { text: hostile, prompt_ids: [1], ids: [1], finish_reason: 'stop', ttft_s: 1, total_s: 1, tokens_per_s: 1 } },
  ];
  await page.route('**/api/v1/infer', (route) => route.fulfill({ contentType: 'application/x-ndjson', body: events.map((e) => JSON.stringify(e)).join('\n') }));
  await page.getByLabel('Your message').fill('say it');
  await page.getByRole('button', { name: 'Send' }).click();
  await expect(page.getByText('tokens/s')).toBeVisible();
  const answer = page.locator('.answer');
  await expect(answer.locator('img, script, [onclick], [onerror], a[href^="javascript"]')).toHaveCount(0);
  expect(await page.evaluate(() => (window as unknown as { hacked?: number }).hacked)).toBeUndefined();
  await page.unroute('**/api/v1/infer');
});

test('a peer that joins shows up, and one that is killed goes away within five seconds', async ({ open, page, nodes }) => {
  await open('peers');
  const rows = page.getByRole('region', { name: 'Peers' }).getByRole('row');
  await expect(rows).toHaveCount(1 + nodes.workers.length);
  const fresh = await Node.start(['--bootstrap', nodes.front.addr], ['--listen', '/ip4/127.0.0.1/tcp/0']);
  try {
    const row = rows.filter({ hasText: fresh.peer.slice(-8) });
    await expect(row).toHaveCount(1);
    await picture(page, 'Peers-joined');
    await fresh.kill();
    await expect(row).toHaveCount(0, { timeout: 5000 });
  } finally {
    await fresh.kill();
  }
});

test('what is put into the DHT is found there', async ({ open, page }) => {
  await open('dht');
  await page.getByLabel('What').selectOption('put');
  await page.getByRole('textbox', { name: 'Key' }).fill('greeting');
  await page.getByRole('textbox', { name: 'Value' }).fill('hello from the page');
  await page.getByRole('button', { name: 'Put a value' }).click();
  await expect(page.getByText('Acknowledged')).toBeVisible();
  await page.getByLabel('What').selectOption('get');
  await page.getByRole('button', { name: 'Get a value' }).click();
  await expect(page.getByText('hello from the page')).toBeVisible();
  await picture(page, 'DHT-get');
});

test('a plan is shown, and requests among the events', async ({ open, page }) => {
  await open('compute');
  await page.getByRole('button', { name: 'Plan', exact: true }).click();
  await expect(page.getByRole('region', { name: 'Chosen chain' }).getByRole('row')).toHaveCount(3);
  await picture(page, 'Compute-plan');
});

test('a token is made, works, and is taken back', async ({ open, page, nodes }) => {
  await open('settings');
  await page.getByLabel('Name').fill('for the test');
  await page.getByRole('button', { name: 'Make a token' }).click();
  const token = await page.getByRole('status').getByRole('code').or(page.locator('.made code')).first().innerText();
  const asked = () => fetch(`${nodes.front.api}/api/v1/id`, { headers: { authorization: `Bearer ${token}` } });
  expect((await asked()).status).toBe(200);
  await page.getByRole('row').filter({ hasText: 'for the test' }).getByRole('button', { name: 'Revoke' }).click();
  await page.getByRole('dialog').getByRole('button', { name: 'Revoke' }).click();
  await expect(page.getByText('No tokens yet')).toBeVisible();
  expect((await asked()).status).toBe(401);
});

test('a setting is changed in the file, and what a daemon would not take is refused', async ({ open, page, nodes, errors }) => {
  const written = () => readFile(join(nodes.front.home, 'config.toml'), 'utf8').catch(() => '');
  await open('settings');
  const row = page.getByRole('region', { name: 'Configuration' }).getByRole('row').filter({ hasText: 'models-quota' });
  const change = row.getByRole('button', { name: 'Change models-quota' });
  const dialog = page.getByRole('dialog', { name: 'models-quota' });
  await change.click();
  await dialog.getByLabel('Value').fill('plenty');
  await dialog.getByRole('button', { name: 'Save' }).click();
  await expect(dialog.getByRole('alert')).toContainText('plenty');
  expect(await written()).toBe('');
  // The browser says on its console that the answer was an error.
  expect(errors.splice(0)).toEqual([expect.stringContaining('400')]);

  expect(await barriers(page)).toEqual([]);
  await dialog.getByLabel('Value').fill('90G');
  await picture(page, 'Settings-change');
  await dialog.getByRole('button', { name: 'Save' }).click();
  await expect(row).toContainText('after a restart: 90G');
  expect(await written()).toBe('models-quota = "90G"\n');

  await change.click();
  await dialog.getByRole('button', { name: 'Take out of the file' }).click();
  await expect(row).not.toContainText('after a restart');
  expect(await written()).toBe('');
  // What opens doors is not changed from here, and what a flag decides is not either.
  for (const closed of ['insecure-no-auth', 'api-listen', 'identity', 'port']) {
    await expect(page.getByRole('button', { name: `Change ${closed}`, exact: true })).toHaveCount(0);
  }
});

test('the log is followed', async ({ open, page, nodes }) => {
  await open('logs');
  await expect(page.getByRole('heading', { name: 'Live' })).toBeVisible();
  await page.getByLabel('Directives').fill('quelea=debug,warn');
  await page.getByRole('button', { name: 'Set', exact: true }).click();
  await expect(page.getByRole('region', { name: 'Log lines' })).toContainText('what is logged was changed');
  expect((await nodes.front.get('/api/v1/config')).log).toBe('quelea=debug,warn');
});

test('a node that goes away is said, and one that comes back is shown', async ({ browser }) => {
  const node = await Node.start([]);
  const page = await (await browser.newContext()).newPage();
  try {
    await page.goto(await node.door());
    await expect(page.getByRole('heading', { level: 1 })).toHaveText('Dashboard');
    await expect(page.getByText('This node knows nobody yet')).toBeVisible();
    await picture(page, 'Dashboard-first');
    await node.kill();
    await expect(page.getByText('No connection to the node.')).toBeVisible();
    await picture(page, 'Banner');
  } finally {
    await page.context().close();
    await node.kill();
  }
});
