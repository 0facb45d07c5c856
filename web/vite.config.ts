import { svelte } from '@sveltejs/vite-plugin-svelte';
import { defineConfig } from 'vite';

// `npm run dev` shows the sources with a daemon behind them: QUELEA_API=http://127.0.0.1:8469.
const api = process.env.QUELEA_API ?? 'http://127.0.0.1:8469';

export default defineConfig({
  plugins: [svelte()],
  build: {
    target: 'es2022',
    // The policy has no place for scripts and styles inside the page.
    modulePreload: { polyfill: false },
    assetsInlineLimit: 0,
    reportCompressedSize: false,
  },
  // With the browser's own Host: the node compares it with the Origin.
  server: { proxy: { '/api': { target: api, changeOrigin: false }, '/v1': { target: api, changeOrigin: false } } },
});
